"""A trial, and its confirmation with a fresh seed."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from testbed.data import DataOptions
from testbed.training import Training


class Trial(BaseModel):
    """All that one trial is told: everything is a plain value, and JSON holds it whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial_id: str
    study: str
    cell: str
    method: str
    options: dict[str, Any]  # of the method
    data: DataOptions
    backbone: str
    backbone_options: dict[str, Any]
    training: Training
    fine_tuning: Training
    seed: int
    phase: Literal["search", "confirmation"] = "search"
    confirms: str = ""  # the trial_id that a confirmation runs again

    def option(self, path: str) -> Any:
        """The value at a dotted path outside the method: "training.learning_rate"."""
        sections = self.model_dump(mode="json")
        value: Any = {**sections, "backbone": {**self.backbone_options, "name": self.backbone}}
        for name in path.split("."):
            # Null in place of a mapping, or an option of a backbone that is left out.
            value = None if value is None else value.get(name)
        return value


def confirmation(trial: Trial, seed: int) -> Trial:
    """A trial of the search again, with a fresh seed."""
    again = {"trial_id": f"{trial.trial_id}-c{seed}", "seed": seed}
    again |= {"phase": "confirmation", "confirms": trial.trial_id}
    return trial.model_copy(update=again)


def confirmations(trials: Sequence[Trial], fresh_seeds: Sequence[int]) -> list[Trial]:
    """These trials again with each of the fresh seeds; settings that differ in the seed alone once.

    Args:
        trials: of the search, the one that speaks for its settings before others like it.
    """
    once: dict[str, Trial] = {}
    for trial in trials:
        once.setdefault(trial.model_dump_json(exclude={"trial_id", "study", "seed"}), trial)
    return [confirmation(trial, seed) for seed in fresh_seeds for trial in once.values()]
