"""The scheduler: Ray Tune asks it whether a trial that reports goes on."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestrator.search.successive_halving import Rungs, RungsInMemory, SuccessiveHalving
from orchestrator.sweep_file import EarlyStopping


def _own_name(trial: Trial) -> tuple[str, str]:
    return "", trial.trial_id


class MultiObjectiveASHA(FIFOScheduler):
    """Multi-objective asynchronous successive halving, which Ray Tune does not have.

    Source: Schmucker et al. 2021, arXiv 2106.12639; see `successive_halving`.
    """

    def __init__(
        self,
        objectives: Mapping[str, str],
        settings: EarlyStopping | None = EarlyStopping(),  # noqa: B008 - frozen
        *,
        time_attr: str = "training_iteration",
        rungs: Rungs | None = None,
        name: Callable[[Trial], tuple[str, str]] = _own_name,
    ) -> None:
        """
        Args:
            objectives: metric -> "maximize" or "minimize". A result that lacks one goes on.
            settings: where the rungs are, in units of `time_attr`, and how many trials go on. None
                stops no trial.
            time_attr: the metric that tells how far a trial is.
            rungs: remembers the trials that came to the rungs; without it the process does.
            name: a trial's group, within which trials are compared, and its id there.
        """
        super().__init__()
        self._settings = settings
        self._rule = SuccessiveHalving(objectives, settings.reduction) if settings else None
        self._time_attr = time_attr
        self._rungs = RungsInMemory() if rungs is None else rungs
        self._name = name

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP for a trial at a rung that is not in the better part there."""
        if self._rule is None or self._settings is None:
            return str(self.CONTINUE)
        if not result.keys() >= {self._time_attr, *self._rule.objectives}:
            return str(self.CONTINUE)
        reached = self._settings.rungs(int(result[self._time_attr]) + 1)
        if not reached:
            return str(self.CONTINUE)
        group, trial_id = self._name(trial)
        goes_on = self._rule.goes_on(self._rungs, group, reached[-1], trial_id, result)
        return str(self.CONTINUE if goes_on else self.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune starts trials in their order, each in the first worker that is free.

        A trial named here would be moved to a freed worker, and the one that starts for it killed.
        """

    def debug_string(self) -> str:
        return "Multi-objective asynchronous successive halving"

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {}
