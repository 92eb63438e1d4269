"""The callback that ends a sweep whose worker processes cannot start."""

import re
import time
from collections.abc import Callable, Collection
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.tuning.callbacks.job_callback import lost_by

MOST_FAILED_STARTS = 4
"""In a row, where no worker is up."""
ONE_FAILURE_S = 2.0
"""Starts that fail within this time fail together, with one node say."""


class NoWorkerError(RuntimeError):
    """No worker process can start."""


class FailedStarts:
    """Counts the starts that fail while no worker is up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed = 0
        self._next_counts_at = 0.0
        self._hopes: set[str] = set()  # that were starting at the first failed start

    def worker_is_up(self) -> None:
        self._failed = 0

    def start_failed(self, name: str, starting: Collection[str], up: int, reason: str) -> None:
        """A worker could not start.

        Args:
            name: of the trial that it was started for.
            starting: the trials whose workers still start.
            up: how many workers are up.
            reason: why.

        Raises:
            NoWorkerError: if the starts that fail are too many, and there is no other to hope for:
                one that began after the first failure is no hope, as one always does.
        """
        if self._clock() >= self._next_counts_at:
            self._failed += 1
            self._next_counts_at = self._clock() + ONE_FAILURE_S
            if self._failed == 1:
                self._hopes = set(starting)
        self._hopes.discard(name)
        hopes = self._hopes & set(starting)
        if self._failed >= MOST_FAILED_STARTS and not up and not hopes:
            raise NoWorkerError(f"No worker process can start: {reason}")


class WorkerStartsCallback(Callback):
    """Tells failed starts of workers from failures of jobs, which they do not count for."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._starts = FailedStarts()
        self._up: set[str] = set()

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        self._up.add(info["trial"].trial_id)
        self._starts.worker_is_up()

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        self._up.discard(info["trial"].trial_id)

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        self._up.discard(info["trial"].trial_id)

    def on_trial_recover(self, *_: Any, **info: Any) -> None:
        trial = info["trial"]
        error = lost_by(trial)
        if trial.trial_id in self._up or not isinstance(error, RayActorError):
            self._up.discard(trial.trial_id)
            return
        trial.run_metadata.num_failures -= 1  # no fault of the job's
        starting = {other.trial_id for other in info["trials"] if other.status == Trial.PENDING}
        lines = str(error).strip().splitlines()
        raised = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
        starting.discard(trial.trial_id)
        try:
            self._starts.start_failed(
                trial.trial_id, starting, len(self._up), [*lines, *raised][-1]
            )
        except NoWorkerError as none:
            self.error = none
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {}
