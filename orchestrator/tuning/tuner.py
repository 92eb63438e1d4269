"""The tuner: one `Tuner.fit` runs all jobs of a sweep on Ray."""

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.plan.jobs import WorkerStart, job_name
from orchestrator.sweep_file import Resources
from orchestrator.tuning.callbacks.job_callback import JobCallback
from orchestrator.tuning.callbacks.memory import MemoryCallback
from orchestrator.tuning.callbacks.signals import SignalsCallback, signals_restored
from orchestrator.tuning.callbacks.worker_starts import WorkerStartsCallback
from orchestrator.tuning.connection import SILENT, settings
from orchestrator.tuning.mended_tune import mended_tune
from orchestrator.tuning.places import Places
from orchestrator.tuning.searcher import JobSource, SweepSearcher
from orchestrator.tuning.shared_objects import SharedObjects
from orchestrator.tuning.trainable import JOB, Work, run_job

MOST_RESTARTS = 3
"""Of one job. A job that kills its worker each time must end too."""
MOST_PLACES = 100_000
"""Ray Tune starts one worker at a time unless it is told how many there may be; `Places` knows."""

_TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its own progress reports
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its files of results
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # a sweep resumes from its run folder
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
}


def run_jobs(
    source: JobSource,
    work: Work,
    callbacks: Sequence[JobCallback],
    resources: Resources,
    *,
    scheduler: TrialScheduler,
    shared: Mapping[str, Any] | None = None,
    expected: float = 0,
    name: str = "sweep",
    name_of: Callable[[Any], str] = job_name,
) -> tune.ResultGrid | None:
    """Runs all jobs of a source; or until a signal stops it, then None.

    At the first SIGINT or SIGTERM running jobs are cancelled and no more are started; a second
    SIGINT raises KeyboardInterrupt on the spot. Ray must be `connected`.

    Args:
        source: gives the jobs, and is told how each ended.
        work: does every job.
        callbacks: hear of the jobs, in this order and before the source. What they raise ends the
            run and is raised from here.
        resources: of one job. Parts of a GPU are shared.
        scheduler: decides which trials stop early.
        shared: objects that jobs read by their keys; see `SharedObjects`.
        expected: how many jobs there are, about: so many workers start at once, where there are
            places.
        name: of the run.
        name_of: a job's name.

    Raises:
        ValueError: if no machine has a job's resources.
        NoWorkerError: if the workers' processes cannot start, for want of a module on their
            machines say.
    """
    searcher = SweepSearcher(source, Places(resources), expected)
    signals, starts = SignalsCallback(), WorkerStartsCallback()
    objects = SharedObjects(shared or {})

    def named(trial: Trial) -> str:
        job = trial.config[JOB]
        return "start of a worker" if isinstance(job, WorkerStart) else name_of(job)

    def sweep_job(config: dict[str, Any]) -> None:
        run_job(config, work=work, shared=objects)

    with (
        _storage() as storage,
        signals_restored(),
        settings(_TUNE_SETTINGS),
        mended_tune(),
        _silence(),
    ):
        tuner = tune.Tuner(
            tune.with_resources(sweep_job, tune.PlacementGroupFactory([resources.of_ray])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=MOST_PLACES,
                trial_name_creator=named,
                trial_dirname_creator=lambda trial: _folder_name(named(trial), trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                callbacks=[signals, starts, *callbacks, MemoryCallback()],
                failure_config=tune.FailureConfig(max_failures=MOST_RESTARTS),
                verbose=0,
            ),
        )
        try:
            results = tuner.fit()
        except Exception:
            errors = [*(callback.error for callback in callbacks), searcher.error, starts.error]
            for error in filter(None, errors):
                raise error from None  # of which Ray Tune passes the text on
            raise
    if searcher.error is not None:
        raise searcher.error
    if not signals.noted:
        return results
    for callback in callbacks:
        callback.give_up()
    return None


def _folder_name(name: str, trial_id: str) -> str:
    """Unlike any other: two dense networks may share a name."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", f"{name}-{trial_id}")


@contextmanager
def _storage() -> Iterator[str]:
    """A folder for what Ray Tune writes: all that matters is in the run folder."""
    folder = tempfile.mkdtemp(prefix="tune-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _silence() -> Iterator[None]:
    """Ray says nothing: the callbacks hear of all that happens."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(SILENT)
    ray._private.worker._worker_logs_enabled = False  # of workers that died; no public switch
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True
        logger.setLevel(level)
