"""Rounds of RNP's training, in each of which the decision network is taught, then the backbone."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationInfo
from torch import Tensor, nn

from rnp.learning.qlearning import Learned
from testbed.cost import count_multiplications
from testbed.data import Splits, normalise
from testbed.method import Run, shared_by_rounds
from testbed.prediction import evaluate

IMAGES_COUNTED = 256  # validation images whose multiplications are counted after each round


def epochs_per_round(rounds: int, epochs: int, adaptation: float) -> list[int]:
    """The epochs of each round; what does not divide goes to the last rounds.

    Raises:
        ValueError: if a round would get none.
    """
    left = epochs - round(adaptation * epochs)
    if rounds > left:
        raise ValueError(
            f"{rounds} rounds need an epoch each, but of fine_tuning.epochs {epochs} the "
            f"adaptation leaves {left}. Ask for fewer rounds, less adaptation or more epochs."
        )
    return shared_by_rounds(left, rounds)


def affordable(rounds: int, info: ValidationInfo) -> int:
    """A validator of the option `rounds`, which comes after the option `adaptation`.

    Refuses too many rounds already when a sweep file is checked (see `PruningMethod`).
    """
    if info.context and "fine_tuning" in info.context and "adaptation" in info.data:
        epochs_per_round(rounds, info.context["fine_tuning"].epochs, info.data["adaptation"])
    return rounds


def report_round(
    network: nn.Module,
    data: Splits,
    run: Run,
    number: int,
    learned: Learned,
    seen: int,
    actions: Callable[[Any, Tensor], Mapping[str, float]],
) -> None:
    """Reports what a round came to, on validation images.

    Args:
        seen: images that went through the backbone for its statistics.
        actions: of the network and normalised images: what is reported of its decisions.
    """
    pixels = data.validation[:IMAGES_COUNTED].pixels.to(run.device)
    images = normalise(pixels, data.mean, data.std)
    precision = run.fine_tuning.precision
    accuracy = evaluate(network, data.validation, data, device=run.device, precision=precision)
    run.report(
        {
            "round": number,
            "round_val_accuracy": accuracy,
            "round_multiplications": count_multiplications(network, images).multiplications,
            "alpha": learned.alpha,
            "p": learned.p,
            "penalty_in_cross_entropy": learned.penalty_in_cross_entropy,
            "q_learning_epochs": (learned.backbone_images + seen) / len(data.train),
            **actions(network, images),
        }
    )
