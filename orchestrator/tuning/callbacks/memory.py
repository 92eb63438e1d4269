"""The callback that keeps Ray Tune small over many thousand trials."""

import shutil
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.plan.jobs import TrialResult
from orchestrator.tuning.trainable import DONE, OUTCOME

SHOWN = ("status", "val_accuracy", "multiplications")
"""Columns of a trial's row that Ray Tune's own results show."""


class MemoryCallback(Callback):
    """Drops what Ray Tune would keep of every trial to the end of a run, but for what is `SHOWN`.

    It stands after all other callbacks. Of 10,000 trials it would be gigabytes (ray-project/ray
    issue 64231).
    """

    def __init__(self) -> None:
        self._ended: list[Trial] = []

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        outcome = result.get(OUTCOME)
        for name in result.keys() - {OUTCOME, DONE, "trial_id"}:
            del result[name]
        if isinstance(outcome, TrialResult):
            result |= {name: outcome.row.get(name) for name in SHOWN}

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial.last_result.pop(OUTCOME, None)
        self.on_trial_error(iteration, trials, trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        shutil.rmtree(str(trial.local_path), ignore_errors=True)
        trial.config, trial.evaluated_params, trial.experiment_tag = {}, {}, ""
        self._ended.append(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Empties the trial's part of Tune's last checkpoint, which cannot be switched off."""
        for trial in self._ended:
            trial._state_json = "{}"  # type: ignore[assignment]
        self._ended.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}
