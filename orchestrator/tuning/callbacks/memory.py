"""The callback that keeps Ray Tune small over many thousand trials."""

import shutil
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.tuning.trainable import OUTCOME, REPORTS


class MemoryCallback(Callback):
    """Drops what Ray Tune holds of a trial that has ended, but for its name and objectives.

    It stands after all other callbacks. Ray Tune keeps every trial to the end of a run
    (ray-project/ray issue 64231); of 10,000 trials that would be gigabytes.
    """

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        for name in (OUTCOME, REPORTS):
            trial.last_result.pop(name, None)
        self.on_trial_error(iteration, trials, trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        shutil.rmtree(str(trial.local_path), ignore_errors=True)
        trial.config, trial.evaluated_params, trial.experiment_tag = {}, {}, ""
