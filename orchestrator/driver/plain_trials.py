"""The trials of a sweep without ranges, for a machine without Optuna."""

from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.plan import Plan, Trial


class PlainTrials:
    """Trials in the plan's order; nothing learns from them."""

    def __init__(self, plan: Plan, ended: Collection[str] = ()) -> None:
        """
        Args:
            ended: the ids of trials that ended in earlier runs.

        Raises:
            ValueError: if an option is a range: names all that are.
        """
        self._trials = {trial.trial_id: trial for trial in plan.plain_trials()}
        self._left = [trial for id, trial in self._trials.items() if id not in ended]

    @property
    def left(self) -> float:
        return len(self._left)

    def ask(self, new: bool = True) -> Trial | None:
        return self._left.pop(0) if self._left and new else None

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None: ...

    def trial(self, trial_id: str) -> Trial:
        return self._trials[trial_id]
