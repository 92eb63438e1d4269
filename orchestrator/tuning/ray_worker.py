"""What runs in Ray's worker processes: one job after another, with news of it to the driver."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError

from orchestrator.formatting import error_text
from orchestrator.tuning.zero_copy import unpack
from testbed.training import Report

Job = Any
"""A piece of work in the caller's terms: anything that can be pickled."""
Work = Callable[[Job, Mapping[str, Any], Report], Any]
"""Does a job: gets the job, what is shared, and where progress goes; its result can be pickled.

It is a function at the top of a module, or a `functools.partial` of one. Workers import it from the
installed packages or from the directory in which the sweep was started.
"""

REPORT_PERIOD_S = 1.0
"""A job's reports travel to the driver once in this time, and when the job ends."""


@dataclass(frozen=True)
class News:
    """What has become of a job since its last news."""

    reports: tuple[Mapping[str, float], ...] = ()
    ended: bool = False
    result: Any = None
    error: str | None = None
    """Of a job that ended by raising; its first line says what."""
    blameless: bool = False
    """Whether Ray itself raised it: shared objects that were lost with their node, say."""


class Worker:
    """One worker process, an actor of Ray's. Only its driver calls it, one call at a time."""

    def __init__(self, work: Work, references: Mapping[str, ray.ObjectRef]) -> None:
        """`references` are to the shared objects."""
        # The work has a thread of its own, so that this one can send reports while it goes on. It
        # is always the same thread, since torch keeps its number of threads by thread.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._work = work
        self._shared = _Shared(references)
        self._reports: SimpleQueue[Mapping[str, float]] = SimpleQueue()
        self._ending: Future[News]

    def is_up(self) -> None:
        """Returns when this process has imported all that the work needs."""

    def do(self, job: Job) -> News:
        """Begins a job, the one before having ended; its first news."""
        self._reports = SimpleQueue()
        self._ending = self._thread.submit(self._do, job)
        return self.go_on()

    def go_on(self) -> News:
        """Waits for the end of the job, or for the end of a second that brought reports."""
        while True:
            wait([self._ending], timeout=REPORT_PERIOD_S)
            ended = self._ending.done()
            reports = tuple(self._reports.get() for _ in range(self._reports.qsize()))
            if ended or reports:
                return replace(self._ending.result() if ended else News(), reports=reports)

    def _do(self, job: Job) -> News:
        try:
            result = self._work(job, self._shared, self._reports.put)
        except BaseException as error:  # SystemExit too: a job that leaves takes no worker with it
            return News(ended=True, error=error_text(error), blameless=isinstance(error, RayError))
        return News(ended=True, result=result)


class _Shared(Mapping[str, Any]):
    """The shared objects, each read from the node's memory when it is first asked for."""

    def __init__(self, references: Mapping[str, ray.ObjectRef]) -> None:
        self._references = references
        self._read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._read:
            self._read[key] = unpack(ray.get(self._references[key]))
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)
