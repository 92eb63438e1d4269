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

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        result = info["result"]
        outcome = result.get(OUTCOME)
        for name in result.keys() - {OUTCOME, DONE, "trial_id"}:
            del result[name]
        if isinstance(outcome, TrialResult):
            result |= {name: outcome.row.get(name) for name in SHOWN}

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        info["trial"].last_result.pop(OUTCOME, None)
        self.on_trial_error(**info)

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        trial = info["trial"]
        shutil.rmtree(str(trial.local_path), ignore_errors=True)
        trial.config, trial.evaluated_params, trial.experiment_tag = {}, {}, ""
        self._ended.append(trial)

    def on_step_end(self, *_: Any, **info: Any) -> None:
        """Empties the trial's part of Tune's last checkpoint, which cannot be switched off."""
        for trial in self._ended:
            trial._state_json = "{}"  # type: ignore[assignment]
        self._ended.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}
