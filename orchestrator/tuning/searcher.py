"""The searcher: Ray Tune asks it for a sweep's jobs, and tells it how each ended."""

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from ray.tune.search import Searcher

from orchestrator.plan import Trial
from orchestrator.plan.jobs import Lost, Outcome, TrialResult
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
        self, source: JobSource, places: Callable[[], float] = lambda: float("inf")
    ) -> None:
        """
        Args:
            places: how many jobs can run at a time now. No more are asked for, since a search
                learns from every trial that ends; but one is, if there is no place at all.
        """
        super().__init__()
        self._source = source
        self._places = places
        self._given: dict[str, Any] = {}
        self._heard: dict[str, Any] = {}  # the last result before the end, by its iteration
        self.error: Exception | None = None
        """What the source raised: Ray Tune would take it for a fault of the trial's."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Takes the bound over: `places` is it."""
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None:
            raise self.error
        if len(self._given) >= max(1, self._places()):
            return None
        job = self._source.ask()
        if job is None:
            return Searcher.FINISHED
        if isinstance(job, Enum):
            return None
        self._given[trial_id] = job
        return {JOB: job}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._heard[trial_id] = result["training_iteration"]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        heard = self._heard.pop(trial_id, None)
        try:
            self._source.tell(self._given.pop(trial_id), _outcome(result, heard))
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
    stopped = result["training_iteration"] != heard
    return TrialResult({**result, "status": "stopped_early" if stopped else "completed"})


class Proposals:
    """Optuna's proposals as jobs, without anything else that a sweep runs."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def ask(self) -> Trial | None:
        return self._proposer.ask()

    def tell(self, job: Trial, outcome: Outcome) -> None:
        row = {"status": "failed"} if not isinstance(outcome, TrialResult) else outcome.row
        self._proposer.tell(job.trial_id, row)
