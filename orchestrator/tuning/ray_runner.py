"""Runs the jobs of a sweep on Ray's workers, phase after phase: dense networks, trials, and so on.

Every job that starts also ends, with one call, whatever happens to it: `on_end` with what it
returned, or `on_lost` where it raised or the sweep was stopped. Where its worker process was lost
instead, with its node say, or for want of memory, it starts again in another, a few times.

A worker is an actor of Ray's, one for every place where a job can run, and lives as long as the
sweep: a new process takes seconds, a job that does nothing some milliseconds
(`benchmarks/sweep_overhead.py`). They start together, while the first dense networks are trained.
"""

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from orchestrator.driver.schedule import Later
from orchestrator.formatting import error_text
from orchestrator.sweep_file import Resources
from orchestrator.tuning.connection import SILENT, in_main_thread
from orchestrator.tuning.ray_worker import Job, News, Work, Worker
from orchestrator.tuning.zero_copy import pack

Phase = Callable[[], Job | Later | None]
"""A part of the run: gives a job when there is a free place for one, and None after its last.
`LATER` says that there is none until one that is running has ended."""

MOST_RESTARTS = 3
"""Of one job. A job that kills its worker each time must end too."""
MOST_FAILED_STARTS = 4
"""Of workers in a row, where none is up."""
FAILED_START_PAUSE_S = 2.0

LOOK_EVERY_S = 0.5  # for a signal, and for places that have come


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


class NoWorkerError(RuntimeError):
    """No worker process can start."""


def run_jobs(
    phases: Sequence[Phase],
    work: Work,
    listener: Listener,
    resources: Resources,
    shared: Mapping[str, Any] | None = None,
    expected: float = math.inf,
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
        expected: how many jobs there are, about. No more workers start before they are needed.

    Raises:
        ValueError: if no machine has a job's resources.
        NoWorkerError: if the workers' processes cannot start, for want of a module on their
            machines say.
    """
    references = {key: ray.put(pack(content)) for key, content in (shared or {}).items()}
    workers = _Workers(work, references, _Places(resources), expected)
    jobs = _Jobs(phases, listener)
    with _signals_noted() as interrupted, _silence(), workers:
        while True:
            workers.start_expected()
            while workers.has_idle and (task := jobs.next()) is not None:
                listener.on_start(task.job)
                workers.give(task)
            if workers.may_grow and (task := jobs.next()) is not None:
                jobs.put_back(task)
                workers.start()
            if jobs.are_over:
                return True
            for task, news in workers.news():
                # A signal reaches the workers too: what they then fail at is no fault of the jobs'.
                if not interrupted.is_set() or (news.ended and news.error is None):
                    jobs.heard(task, news)
            if interrupted.is_set():
                jobs.stop()
                return False


@dataclass(eq=False)
class _Task:
    """A job on its way."""

    job: Job
    restarts: int = 0


class _Jobs:
    """Which job is next, which are running, and who hears of them."""

    def __init__(self, phases: Sequence[Phase], listener: Listener) -> None:
        self._phases = deque(phases)
        self._phase_is_over = False  # but for the jobs that are running
        self._listener = listener
        self._running: set[_Task] = set()
        self._waiting: deque[_Task] = deque()  # to start, or to start again

    def next(self) -> _Task | None:
        """What is to start now, if anything.

        A search learns from every trial that ends, so it is asked when a place is free, not before.
        """
        task = self._waiting.popleft() if self._waiting else self._from_phase()
        if task is not None:
            self._running.add(task)
        return task

    def put_back(self, task: _Task) -> None:
        """There is no place for it yet."""
        self._running.remove(task)
        self._waiting.appendleft(task)

    @property
    def are_over(self) -> bool:
        return not (self._running or self._waiting or self._phases)

    def heard(self, task: _Task, news: News) -> None:
        """News of a running job."""
        for values in news.reports:
            self._listener.on_report(task.job, values)
        if not news.ended:
            return
        self._running.remove(task)
        if news.error is None:
            self._listener.on_end(task.job, news.result)
        elif not news.blameless:
            self._listener.on_lost(task.job, "failed", news.error)
        elif task.restarts == MOST_RESTARTS:
            reason = f"Given up after {MOST_RESTARTS + 1} starts. {news.error}"
            self._listener.on_lost(task.job, "failed", reason)
        else:
            task.restarts += 1
            self._waiting.append(task)
            self._listener.on_restart(task.job, news.error)

    def stop(self) -> None:
        """Gives up all jobs that are running, or are to start again."""
        for task in [*self._running, *self._waiting]:
            self._listener.on_lost(task.job, "stopped", "Stopped: the sweep was interrupted.")

    def _from_phase(self) -> _Task | None:
        while self._phases:
            if not self._phase_is_over:
                job = self._phases[0]()
                if isinstance(job, Later):
                    return None
                if job is not None:
                    return _Task(job)
                self._phase_is_over = True
            if self._running:  # which may have to start again
                return None
            self._phases.popleft()
            self._phase_is_over = False
        return None


class _Workers:
    """The worker processes: those that start, those that wait for a job, and those that do one."""

    def __init__(
        self,
        work: Work,
        references: Mapping[str, ObjectRef],
        places: "_Places",
        expected: float,
    ) -> None:
        needs = places.of_one_job
        self._actor: Any = ray.remote(Worker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            memory=needs["memory"],
            scheduling_strategy="SPREAD",
        )
        self._arguments = work, references
        self._places = places
        self._expected = expected
        self._starting: dict[ObjectRef, Any] = {}
        self._asked: dict[ObjectRef, Any] = {}  # idle ones, whether they are still there
        self._idle: list[Any] = []
        self._busy: dict[ObjectRef, tuple[Any, _Task]] = {}
        self._failed_starts = 0
        self._hopes: set[ObjectRef] = set()  # that were starting at the first failed start
        self._not_before = 0.0  # on the monotonic clock, the next start

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        busy = [worker for worker, _ in self._busy.values()]
        for worker in [*self._starting.values(), *self._asked.values(), *self._idle, *busy]:
            ray.kill(worker)

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    @property
    def may_grow(self) -> bool:
        """Whether a job that comes now would need, and could have, one worker more."""
        all_are_busy = not (self._idle or self._asked or self._starting)
        return all_are_busy and self._may_start and len(self._busy) < self._places.number()

    def start_expected(self) -> None:
        """Starts as many as there are to be; also in place of those that were lost."""
        if not self._may_start:
            return
        there = sum(map(len, (self._starting, self._asked, self._idle, self._busy)))
        while there < min(self._expected, self._places.number()):
            self.start()
            there += 1

    @property
    def _may_start(self) -> bool:
        return time.monotonic() >= self._not_before

    def start(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._starting[worker.is_up.remote()] = worker

    def give(self, task: _Task) -> None:
        """Gives an idle worker its next job."""
        worker = self._idle.pop()
        self._busy[worker.do.remote(task.job)] = worker, task

    def news(self) -> list[tuple[_Task, News]]:
        """What is new of the jobs, after a moment at most.

        Raises:
            NoWorkerError: if there is no worker, and one after another cannot start.
        """
        waited_for = [*self._starting, *self._asked, *self._busy]
        if not waited_for:  # every node with a place for one is away, or the last start failed
            time.sleep(LOOK_EVERY_S)
            return []
        ray.wait(waited_for, timeout=LOOK_EVERY_S)
        known, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        for reference in known:
            if reference in self._starting:
                self._take_up(reference)
            elif reference in self._asked:
                self._take_back(reference)
        return [self._heard(reference) for reference in known if reference in self._busy]

    def _take_up(self, reference: ObjectRef) -> None:
        """A worker has started, or could not."""
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            now = time.monotonic()
            if now >= self._not_before:  # those of one lost node are one failure
                self._failed_starts += 1
                self._not_before = now + FAILED_START_PAUSE_S
                if self._failed_starts == 1:
                    self._hopes = {*self._starting}
            # Of those that came later one is always starting when another fails: they are no hope.
            hopes = self._hopes & self._starting.keys()
            none_is_up = not (self._asked or self._idle or self._busy)
            if self._failed_starts >= MOST_FAILED_STARTS and none_is_up and not hopes:
                last = str(error).strip().splitlines()[-1]
                raise NoWorkerError(f"No worker process can start: {last}") from error
        else:
            self._failed_starts = 0
            self._idle.append(worker)

    def _take_back(self, reference: ObjectRef) -> None:
        worker = self._asked.pop(reference)
        with suppress(RayError):  # it went with the lost one
            ray.get(reference)
            self._idle.append(worker)

    def _heard(self, reference: ObjectRef) -> tuple[_Task, News]:
        worker, task = self._busy.pop(reference)
        try:
            news: News = ray.get(reference)
        except RayTaskError as error:  # what the worker returns cannot be sent, say
            news = News(ended=True, error=error_text(error.cause))
        except RayError as error:  # it died, or the machine's memory did not last, or it is away
            ray.kill(worker)
            # If its node is gone, idle ones of that node would each cost a job one of its starts.
            self._asked |= {idle.is_up.remote(): idle for idle in self._idle}
            self._idle.clear()
            self._failed_starts = 0  # it had started: others of its kind can
            text = f"The worker process died: killed, out of memory, or crashed.\n{error}"
            return task, News(ended=True, error=text, blameless=True)
        if news.ended:
            self._idle.append(worker)
        else:
            self._busy[worker.go_on.remote()] = worker, task
        return task, news


def check_resources(resources: Resources) -> None:
    """Whether Ray, once `connected`, can run a job at all.

    Raises:
        ValueError: if no machine has the resources.
    """
    _Places(resources)


class _Places:
    """How many jobs can run at a time: nodes of a cluster come and go."""

    _PERIOD_S = 10.0

    def __init__(self, resources: Resources) -> None:
        self.of_one_job = resources.of_ray
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
            min(math.floor(has.get(name, 0) / n) for name, n in self.of_one_job.items() if n > 0)
            for has in nodes
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Ray says nothing: the listener hears of all that happens."""
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
