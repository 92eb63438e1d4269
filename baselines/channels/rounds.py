"""Rounds of prune and retrain: how the fine-tuning epochs are shared between them."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from testbed.method import shared_by_rounds


def epochs_per_round(rounds: int, epochs: int) -> list[int]:
    """Splits `epochs` evenly; what does not divide goes to the last rounds, which need it most.

    Raises:
        ValueError: if a round would get none. A single round may: it prunes without retraining.
    """
    if rounds > max(1, epochs):
        raise ValueError(
            f"{rounds} rounds of prune and retrain need an epoch each, but fine_tuning.epochs is "
            f"{epochs}. Ask for at most {max(1, epochs)} rounds, or for more epochs."
        )
    return shared_by_rounds(epochs, rounds)


def _affordable(rounds: int, info: ValidationInfo) -> int:
    """Refuses too many rounds already when a sweep file is checked (see `PruningMethod`)."""
    if info.context and "fine_tuning" in info.context:
        epochs_per_round(rounds, info.context["fine_tuning"].epochs)
    return rounds


Rounds = Annotated[
    int,
    Field(ge=1, description="Rounds of prune and retrain; they share the fine-tuning epochs."),
    AfterValidator(_affordable),
]
