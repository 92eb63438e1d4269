"""Ray Tune's calls in a sweep's own terms: jobs that start, report, start again and end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.formatting import error_text
from orchestrator.plan.jobs import INTERRUPTED, Lost, Outcome, WorkerStart
from orchestrator.tuning.trainable import DONE, JOB, OUTCOME, REPORTS


class JobCallback(Callback):
    """Base of a sweep's callbacks: override what begins with `job_`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """What one of them raised: Ray Tune would pass its text on alone."""
        self._running: dict[str, Any] = {}

    def job_started(self, job: Any) -> None:
        """A job starts, or starts again."""

    def job_reported(self, job: Any, reports: Sequence[Mapping[str, float]]) -> None:
        """What a job reported since the last time."""

    def job_restarts(self, job: Any, reason: str) -> None:
        """A job's worker was lost. It starts again, and reports once more what it has reported."""

    def job_ended(self, job: Any, outcome: Outcome) -> None:
        """A job has ended, before the search hears of it."""

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        trial = info["trial"]
        if isinstance(trial.config[JOB], WorkerStart):
            return
        self._running[trial.trial_id] = trial.config[JOB]
        with self._kept():
            self.job_started(trial.config[JOB])

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        trial, result = info["trial"], info["result"]
        if trial.trial_id not in self._running:
            return
        with self._kept():
            self.job_reported(trial.config[JOB], result.get(REPORTS, ()))
            if result.get(DONE):
                del self._running[trial.trial_id]
                self.job_ended(trial.config[JOB], result[OUTCOME])

    def on_trial_recover(self, *_: Any, **info: Any) -> None:
        trial = info["trial"]
        if trial.trial_id in self._running:  # else its worker did not start
            with self._kept():
                self.job_restarts(trial.config[JOB], why_lost(trial))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        trial = info["trial"]
        if isinstance(trial.config[JOB], WorkerStart):
            return
        self._running.pop(trial.trial_id, None)
        starts = trial.run_metadata.num_failures
        lost = Lost("failed", f"Given up after {starts} starts. {why_lost(trial)}")
        with self._kept():
            self.job_ended(trial.config[JOB], lost)

    def give_up(self) -> None:
        """The run was interrupted: what still runs has stopped."""
        for job in self._running.values():
            self.job_ended(job, INTERRUPTED)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of it is saved."""
        return {}

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


def lost_by(trial: Trial) -> Exception | None:
    """The last exception of a trial's worker, if Ray Tune has kept it in its temporary folder."""
    with suppress(OSError, TypeError):
        error: Exception = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error
    return None


def why_lost(trial: Trial) -> str:
    """Why a trial's worker was lost; the first line says what, the others Ray's details."""
    error = lost_by(trial)
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayActorError):
        return error_text(error.cause)  # an object that was lost with its node, say
    details = error or Path(trial.error_file).read_text(encoding="utf-8")
    return f"The worker process died: killed, out of memory, or crashed.\n{details}"
