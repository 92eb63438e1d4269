"""Four faults of Ray Tune 2.60, mended while a sweep runs.

Two concern workers that are lost, and would cost trials that did nothing wrong. The third would
cost seconds each time that a worker has to wait, the fourth memory for every trial that has ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

_task_failed = RayActorManager._actor_task_failed
_trial_failed = TuneController._trial_task_failure
_flushed = _ObjectCache.flush_cached_objects


def _actor_task_failed(
    self: RayActorManager, tracked_actor_task: Any, exception: Exception
) -> None:
    """A worker that Ray killed, for want of memory say, has died like any other.

    Ray Tune takes only `RayActorError` for a death, and ends the whole run at another error.
    """
    if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
        exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
    _task_failed(self, tracked_actor_task, exception)


def _trial_task_failure(self: TuneController, trial: Trial, exception: Exception) -> None:
    """A trial that got an idle worker which had died is put back once, and gets another.

    Ray Tune puts it back when it hears of the worker, and then fails it when it hears of the task;
    and it goes on waiting for the dead worker.
    """
    self._resetting_trials.discard(trial)
    if not (trial.status == Trial.PENDING and isinstance(exception, RayActorError)):
        _trial_failed(self, trial, exception)


def _cache_object(self: _ObjectCache, key: Any, worker: Any) -> bool:
    """An idle worker is kept for the next job: all jobs of a sweep need the same resources.

    Ray Tune keeps one, and ends the others.
    """
    self._cached_objects[key].append(worker)
    self._num_cached_objects += 1
    return True


def _flush_cached_objects(self: _ObjectCache, force_all: bool = False) -> Iterator[Any]:
    if force_all:
        yield from _flushed(self, force_all=True)


def _fetch_trial_dataframes(self: ExperimentAnalysis) -> dict[str, Any]:
    """No file of a trial's results is looked for, as none is written (see `MemoryCallback`).

    Ray Tune keeps the error, with all that it refers to, for each file that it does not find.
    """
    return {}


@contextmanager
def mended_tune() -> Iterator[None]:
    """Ray Tune without the four."""
    with (
        patch.object(_ObjectCache, "cache_object", _cache_object),
        patch.object(_ObjectCache, "flush_cached_objects", _flush_cached_objects),
        patch.object(ExperimentAnalysis, "_fetch_trial_dataframes", _fetch_trial_dataframes),
        patch.object(RayActorManager, "_actor_task_failed", _actor_task_failed),
        patch.object(TuneController, "_trial_task_failure", _trial_task_failure),
    ):
        yield
