"""A source of jobs for the tests of the tuner, and what a run of them comes to."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import ray_jobs
from ray_jobs import Job

from orchestrator.plan.jobs import Lost, Outcome
from orchestrator.sweep_file import Resources
from orchestrator.tuning.callbacks.job_callback import JobCallback
from orchestrator.tuning.connection import connected
from orchestrator.tuning.scheduler import MultiObjectiveASHA
from orchestrator.tuning.tuner import run_jobs


class Wait(Enum):
    WAIT = "later"


class Jobs(JobCallback):
    """A source of jobs, part after part, and what was heard of them."""

    def __init__(self, *parts: Iterable[Job]) -> None:
        super().__init__()
        self._parts = [iter(part) for part in parts]
        self.running = 0
        self.started: list[Job] = []
        self.reports: list[tuple[float, Mapping[str, float]]] = []  # with the time
        self.ended: dict[Job, Any] = {}
        self.lost: dict[Job, Lost] = {}
        self.restarted: list[Job] = []
        self.told: dict[Job, Outcome] = {}

    def ask(self) -> Job | Wait | None:
        while self._parts:
            job = next(self._parts[0], None)
            if job is not None:
                self.running += 1
                return job
            if self.running:
                return Wait.WAIT
            self._parts.pop(0)
        return None

    def tell(self, job: Job, outcome: Outcome) -> None:
        self.running -= 1
        assert job not in self.told
        self.told[job] = outcome

    def processes(self) -> set[int]:
        return {result[0] for result in self.ended.values() if isinstance(result, tuple)}

    def job_started(self, job: Job) -> None:
        self.started.append(job)

    def job_reported(self, job: Job, reports: Sequence[Mapping[str, float]]) -> None:
        self.reports += [(time.time(), values) for values in reports]

    def job_restarts(self, job: Job, reason: str) -> None:
        assert reason
        self.restarted.append(job)

    def job_ended(self, job: Job, outcome: Outcome) -> None:
        assert job not in {**self.ended, **self.lost}
        if isinstance(outcome, Lost):
            self.lost[job] = outcome
        else:
            self.ended[job] = outcome


def fit(
    jobs: Jobs,
    *more: JobCallback,
    work: Any = ray_jobs.do,
    resources: Resources | None = None,
    shared: Mapping[str, Any] | None = None,
    scheduler: MultiObjectiveASHA | None = None,
    expected: float = 0,
) -> Any:
    """What Ray Tune gives back."""
    with connected(None):
        return run_jobs(
            jobs,
            work,
            [jobs, *more],
            resources or Resources(),
            scheduler=scheduler or MultiObjectiveASHA({}, None),
            shared=shared,
            expected=expected,
            name_of=lambda job: str(job[0]),
        )


def run(*parts: Iterable[Job], **given: Any) -> Jobs:
    jobs = Jobs(*parts)
    assert fit(jobs, **given) is not None
    assert jobs.told.keys() == {**jobs.ended, **jobs.lost}.keys()
    return jobs


def until(done: Callable[[], bool], job: Callable[[int], Job], seconds: float = 300) -> Any:
    """Gives job after job until it is done, or the time is over."""
    given = 0
    give_up = time.time() + seconds
    while not done() and time.time() < give_up:
        given += 1
        yield job(given)
