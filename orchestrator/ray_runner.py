"""Ray Tune runs the jobs of a sweep, phase after phase: dense networks, trials, and what follows.

Every job that starts also ends, with one call, whatever happens to it: `on_end` with what it
returned, or `on_lost` where it raised or the sweep was stopped. Where its worker process was lost
instead, with its node say, or for want of memory, it starts again in another, a few times.

What keeps a job that does nothing at about 0.01 s (`benchmarks/sweep_overhead.py`): worker
processes go from job to job (a new one takes 1 to 2 s), jobs and results are opaque to Tune, and
its own record of the sweep, which grows with it, is written once, into a folder that is removed.
"""

import logging
import math
import pickle
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.notation import error_text
from orchestrator.ray_connection import SILENT, in_main_thread
from orchestrator.ray_worker import Job, News, Parcel, Work, worker_class
from orchestrator.schedule import Later
from orchestrator.sweep_file import Resources

Phase = Callable[[], Job | Later | None]
"""A part of the run: gives a job when there is a free place for one, and None after its last.
`LATER` says that there is none until one that is running has ended."""

MOST_RESTARTS = 3
"""Of one job. A job that kills its worker each time must end too."""


@dataclass(frozen=True)
class Listener:
    """Who hears of the jobs, in the driver's own thread."""

    on_start: Callable[[Job], None]
    """Also when it starts again."""
    on_report: Callable[[Job, Mapping[str, float]], None]
    on_end: Callable[[Job, Any], None]
    """With what the job returned."""
    on_lost: Callable[[Job, str, str], None]
    """With "failed" or "stopped", and an error whose first line says what went wrong."""
    on_restart: Callable[[Job, str], None] = lambda job, reason: None
    """With why its worker was lost; it will start again."""


@dataclass
class _Task:
    """A job that Ray has been given."""

    job: Job
    restarts: int = 0


def run_jobs(
    phases: Sequence[Phase],
    work: Work,
    listener: Listener,
    resources: Resources,
    shared: Mapping[str, Any] | None = None,
) -> bool:
    """Runs all jobs and returns True; or until a signal stops it, then False.

    At the first SIGINT or SIGTERM running jobs are cancelled and no more are started; a second
    SIGINT raises KeyboardInterrupt on the spot. Ray must be `connected`.

    Args:
        phases: each begins when all jobs of the one before have ended.
        work: does every job.
        listener: what it raises ends the run and is raised from here.
        resources: of one job. Parts of a GPU are shared.
        shared: objects that jobs read by their keys. Each node holds their tensors once; no job may
            write to them.

    Raises:
        ValueError: if no machine has a job's resources.
    """
    driver = _Driver(phases, listener, _Slots(resources))
    with (
        _signals_noted() as interrupted,
        _silence(),
        tempfile.TemporaryDirectory(prefix="sweep-") as folder,
    ):
        try:
            tune.run(
                worker_class(work, shared or {}),
                search_alg=_TuneSearcher(driver, interrupted),
                scheduler=_TuneScheduler(),
                callbacks=[_TuneCallback(driver, interrupted)],
                num_samples=-1,
                reuse_actors=True,
                resources_per_trial=resources.of_ray,
                raise_on_failed_trial=False,
                storage_path=folder,
                name="tune",
                verbose=0,
            )
        except _InterruptedError:
            driver.stop_running()
        except tune.TuneError as error:
            raise driver.failure or error from None
        return not interrupted.is_set()


class _Driver:
    """Which job is next, which are running, and who hears of them."""

    def __init__(self, phases: Sequence[Phase], listener: Listener, slots: "_Slots") -> None:
        self.failure: Exception | None = None
        self._phases = deque(phases)
        self._phase_is_over = False  # but for the jobs that are running
        self._listener = listener
        self._slots = slots
        self._running: dict[str, _Task] = {}
        self._again: deque[_Task] = deque()

    def suggest(self, tune_id: str) -> dict[str, Any] | None:
        """The configuration of Tune's next trial; None where none is to start now.

        A search learns from every trial that ends, so it is asked when a place is free, not before.
        """
        if len(self._running) >= self._slots.number():
            return None
        if self._again:
            return self._give(tune_id, self._again.popleft())
        while self._phases:
            if not self._phase_is_over:
                job = self._phases[0]()
                if isinstance(job, Later):
                    return None
                if job is not None:
                    return self._give(tune_id, _Task(job))
                self._phase_is_over = True
            if self._running:  # which may have to start again
                return None
            self._phases.popleft()
            self._phase_is_over = False
        return Searcher.FINISHED  # type: ignore[return-value]

    @property
    def is_idle(self) -> bool:
        """Whether Ray has no job."""
        return not self._running

    def _give(self, tune_id: str, task: _Task) -> dict[str, Any]:
        self._running[tune_id] = task
        return {"job": Parcel(task.job)}

    def started(self, tune_id: str) -> None:
        with self._keeping_failure():
            self._listener.on_start(self._running[tune_id].job)

    def heard(self, tune_id: str, news: News) -> None:
        """News of a running job."""
        job = self._running[tune_id].job
        with self._keeping_failure():
            for values in news.reports:
                self._listener.on_report(job, values)
            if news.error is not None:
                self.lost(tune_id, news.error, news.blameless)
            elif news.ended:
                del self._running[tune_id]
                self._listener.on_end(job, news.result)

    def lost(self, tune_id: str, error: str, blameless: bool) -> None:
        """A job from which nothing more will come. Tune may say so twice.

        Args:
            blameless: whether it was no error of the job's own, which it would only make again.
        """
        if tune_id not in self._running:
            return
        task = self._running.pop(tune_id)
        with self._keeping_failure():
            if not blameless:
                self._listener.on_lost(task.job, "failed", error)
            elif task.restarts == MOST_RESTARTS:
                reason = f"Given up after {MOST_RESTARTS + 1} starts. {error}"
                self._listener.on_lost(task.job, "failed", reason)
            else:
                task.restarts += 1
                self._again.append(task)
                self._listener.on_restart(task.job, error)

    def stop_running(self) -> None:
        """Gives up all jobs that are running, or are to start again."""
        for task in [*self._running.values(), *self._again]:
            self._listener.on_lost(task.job, "stopped", "Stopped: the sweep was interrupted.")
        self._running.clear()
        self._again.clear()

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        """Keeps what a callback raises, of which Tune would raise the text alone."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


def check_resources(resources: Resources) -> None:
    """Whether Ray, once `connected`, can run a job at all.

    Raises:
        ValueError: if no machine has the resources.
    """
    _Slots(resources)


class _Slots:
    """How many jobs can run at a time: nodes of a cluster come and go."""

    _PERIOD_S = 10.0

    def __init__(self, resources: Resources) -> None:
        self._needs = resources.of_ray
        self._counted_at = time.monotonic()
        self._number = self._count()
        if self._number == 0:
            raise ValueError(
                f"Expected a machine with the {resources.cpus} CPUs, {resources.gpus:g} GPUs and "
                f"{resources.memory_gb:g} GB of memory that a trial asks for, but none has as "
                "much. Ask for less in the sweep file's resources."
            )

    def number(self) -> int:
        if time.monotonic() - self._counted_at > self._PERIOD_S:
            self._counted_at, self._number = time.monotonic(), self._count()
        return self._number

    def _count(self) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(math.floor(has.get(name, 0) / n) for name, n in self._needs.items() if n > 0)
            for has in nodes
        )


class _InterruptedError(BaseException):
    """Leaves Tune at once: it handles an Exception by waiting for the running jobs."""


class _TuneSearcher(Searcher):
    """Where Tune gets its trials from."""

    def __init__(self, driver: _Driver, interrupted: threading.Event) -> None:
        super().__init__()
        self._driver = driver
        self._interrupted = interrupted

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if not self._interrupted.is_set():
            return self._driver.suggest(trial_id)
        if self._driver.is_idle:  # Tune asks on for ten minutes, in the same step: no node is left
            raise _InterruptedError
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: `_TuneCallback` hears of every end, and knows its error."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: Tune's record is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _TuneScheduler(FIFOScheduler):
    """Leaves every job to the worker process it waits for.

    Tune's own scheduler hands each worker that becomes free to the job that has waited longest,
    which is one whose own worker is starting; that one is then killed and another started. With
    jobs of a second or two, a single worker did them all while the others never came up. It also
    goes through all trials at every step.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


class _TuneCallback(tune.Callback):
    """What Tune tells of its trials."""

    def __init__(self, driver: _Driver, interrupted: threading.Event) -> None:
        self._driver = driver
        self._interrupted = interrupted

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if self._interrupted.is_set():
            for trial in trials:
                if trial.temporary_state.ray_actor is not None:
                    ray.kill(trial.temporary_state.ray_actor)
            raise _InterruptedError

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._driver.started(trial.trial_id)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        # Taken out, since Tune keeps the last result of every trial.
        self._driver.heard(trial.trial_id, result.pop("news").content)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if not self._interrupted.is_set():  # else the signal has reached the worker too
            self._driver.lost(trial.trial_id, *_why_lost(trial))


def _why_lost(trial: TuneTrial) -> tuple[str, bool]:
    """What Tune has written down of a trial whose worker did not answer; whether it is blameless.

    A RayTaskError is what the worker's process raised: the job's result cannot be sent, say.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return "The worker failed, and Tune kept no reason.", True
    error = pickle.loads(Path(path).read_bytes())
    if isinstance(error, RayActorError) and error.actor_init_failed:
        last = str(error).strip().splitlines()[-1]
        return f"The worker process could not start: {last}\n{error}", True
    if isinstance(error, RayActorError):
        return f"The worker process died: killed, out of memory, or crashed.\n{error}", True
    blameless = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    return error_text(getattr(error, "cause", error)), blameless


@contextmanager
def _silence() -> Iterator[None]:
    """Ray and Tune say nothing: the listener hears of all that happens."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(SILENT)
    ray._private.worker._worker_logs_enabled = False  # of workers that died; no public switch
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True
        logger.setLevel(level)


@contextmanager
def _signals_noted() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, instead of ending a write half-way."""
    noted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if noted.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.set()

    with ExitStack() as restored:
        if in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                restored.callback(signal.signal, number, signal.signal(number, note))
        yield noted
