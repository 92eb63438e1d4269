"""The searcher: Ray Tune asks it for a sweep's jobs, and tells it how each ended."""

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from ray.tune.search import Searcher

from orchestrator.plan import Plan, Trial
from orchestrator.plan.jobs import Lost, Outcome, TrialResult, WorkerStart
from orchestrator.search.proposer import Proposer
from orchestrator.tuning.trainable import JOB, OUTCOME

LOST = "Its worker process was lost again and again."


class JobSource(Protocol):
    """Where the jobs come from: a sweep's coordinator, or `Proposals`."""

    def ask(self) -> Any:
        """The next job; None after the last, and an Enum's member where one that runs must end
        first, of which there is one then."""
        ...

    def tell(self, job: Any, outcome: Outcome) -> None:
        """How a job ended."""
        ...


class SweepSearcher(Searcher):
    """Ray Tune's searcher for the jobs of a sweep. Each is `config["job"]` of a trial of Tune's.

    Nothing of it is saved: what a sweep resumes from is the source's.
    """

    def __init__(
        self,
        source: JobSource,
        places: Callable[[], float] = lambda: float("inf"),
        expected: float = 0,
    ) -> None:
        """
        Args:
            places: how many jobs can run at a time now. No more are asked for, since a search
                learns from every trial that ends; but one is, if there is no place at all.
            expected: how many jobs there are, about. So many workers start at once, though the
                first jobs may be fewer, as long as there are places.
        """
        super().__init__()
        self._source = source
        self._places = places
        self._expected = expected
        self._suggested = 0
        self._most = float("inf")
        self._given: dict[str, Any] = {}
        self._heard: dict[str, Any] = {}  # the last result before the end, by its iteration
        self.error: Exception | None = None
        """What the source raised: Ray Tune would take it for a fault of the trial's."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Takes the bound over; `places` is another one."""
        self._most = max_concurrent
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None:
            raise self.error
        places = min(self._places(), self._most)
        if len(self._given) >= max(1, places):
            return None
        job = self._source.ask()
        if job is None:
            return Searcher.FINISHED
        if isinstance(job, Enum):
            if self._suggested >= min(places, self._expected):
                return None
            job = WorkerStart()
        self._suggested += 1
        self._given[trial_id] = job
        return {JOB: job}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._heard[trial_id] = result["training_iteration"]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job, heard = self._given.pop(trial_id), self._heard.pop(trial_id, None)
        try:
            if not isinstance(job, WorkerStart):
                self._source.tell(job, _outcome(result, heard))
        except Exception as raised:
            self.error = raised

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _outcome(result: dict[str, Any] | None, heard: Any) -> Outcome:
    if result is None:
        return Lost("failed", LOST)
    if OUTCOME in result:
        outcome: Outcome = result[OUTCOME]
        return outcome
    # A trainable of the user's own. The result at which Tune stops a trial is told only here.
    spent = result["training_iteration"]
    status = "completed" if spent == heard else "stopped_early"
    return TrialResult({**result, "status": status, "epochs_spent": spent})


class Proposals:
    """Optuna's proposals for a sweep file as jobs, for a sweep of your own in Ray Tune.

    Each job is a `Trial`: its `options`, `backbone_options`, `training` and so on hold the values.
    """

    def __init__(self, plan: Plan, storage: BaseStorage) -> None:
        """
        Args:
            storage: of the Optuna studies; what is in it already is resumed.
        """
        sweep = plan.sweep
        ended = {
            trial.user_attrs["trial_id"]: {"study": name}
            for name in optuna.get_all_study_names(storage)
            for trial in optuna.load_study(study_name=name, storage=storage).trials
            if trial.state.is_finished() and "trial_id" in trial.user_attrs
        }
        self._proposer = Proposer(plan.studies, sweep.objectives, sweep.search, storage, ended)

    def ask(self) -> Trial | None:
        return self._proposer.ask()

    def tell(self, job: Trial, outcome: Outcome) -> None:
        row = outcome.row if isinstance(outcome, TrialResult) else {"status": "failed"}
        self._proposer.tell(job.trial_id, row)
