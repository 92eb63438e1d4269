"""Jobs that fail and workers that are lost, on a real Ray of two workers."""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray_jobs
from job_source import Jobs, fit, run
from ray_jobs import Job

from orchestrator.tuning import tuner
from orchestrator.tuning.callbacks import worker_starts
from orchestrator.tuning.callbacks.worker_starts import NoWorkerError

pytestmark = pytest.mark.usefixtures("two_workers")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the job that kills its first process says which that was."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def ran(two_workers: None, first: Path) -> Jobs:
    """All that can happen to a job, each of which may start twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "MOST_RESTARTS", 1)
        ends = [("give", 1), ("fail",), ("leave",), ("kill",), ("lose_an_object",)]
        return run([*ends, ("kill_the_first", str(first)), ("give", 2)], [("give", 3)])


def test_every_job_ends_with_one_call_whatever_happens_to_it(ran: Jobs, first: Path) -> None:
    killed_once = ("kill_the_first", str(first))
    errors = {job[0]: lost.error.splitlines()[0] for job, lost in ran.lost.items()}
    died = "Given up after 2 starts. The worker process died: killed, out of memory, or crashed."
    assert "ObjectLostError" in errors.pop("lose_an_object")
    assert errors == {"fail": "ValueError: no such luck", "leave": "SystemExit: 3", "kill": died}
    assert set(ran.ended) == {killed_once, *(("give", number) for number in (1, 2, 3))}
    assert ", in fail\n" in ran.lost["fail",].error
    assert {lost.status for lost in ran.lost.values()} == {"failed"}
    assert set(ran.started) == {*ran.ended, *ran.lost}


def test_only_what_is_no_error_of_the_jobs_starts_it_again(ran: Jobs, first: Path) -> None:
    again = [("kill",), ("kill_the_first", str(first)), ("lose_an_object",)]
    assert sorted(ran.restarted) == again
    assert ran.started.count(("fail",)) == 1, "it would only fail again"


def test_a_job_whose_worker_is_killed_starts_again_in_another(ran: Jobs, first: Path) -> None:
    process = ran.ended["kill_the_first", str(first)]
    assert process != int((first / "first").read_text()), "the process of its first start is dead"


def test_idle_workers_that_were_lost_cost_a_job_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuner, "MOST_RESTARTS", 1)
    first: list[Job] = [("meet", str(tmp_path), number) for number in range(2)]

    def after_both_are_killed() -> Iterable[Job]:
        for process in jobs.processes():
            os.kill(process, signal.SIGKILL)
        time.sleep(1)
        yield ("give", 1)

    jobs = Jobs(first, after_both_are_killed())
    assert fit(jobs) is not None

    assert len(jobs.processes()) == 2, "both were up"
    assert jobs.lost == {}
    assert jobs.ended["give", 1] == 1
    assert jobs.restarted == []


def test_a_worker_that_ray_killed_for_its_memory_is_lost_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's error is not that of an actor that died."""
    killed: list[int] = []
    real_get = ray.get

    def get(reference: Any, **options: Any) -> Any:
        found = real_get(reference, **options)
        if not killed and isinstance(found, dict) and found.get("done"):
            killed.append(found["outcome"])
            os.kill(found["outcome"], signal.SIGKILL)
            time.sleep(0.5)
            raise ray.exceptions.OutOfMemoryError("the node runs out of memory")
        return found

    monkeypatch.setattr(ray, "get", get)
    jobs = run([("own_process", number) for number in range(6)])

    assert len(jobs.ended) == 6 and jobs.lost == {}
    assert len(jobs.restarted) == 1, "no other job is given to it"
    assert killed[0] not in jobs.ended.values()


def loaded(folder: Path, failures: int) -> ray_jobs.Loaded:
    for number in range(failures):
        (folder / f"fails{number:03d}").touch()
    return ray_jobs.Loaded(folder, os.getpid())


def test_workers_that_cannot_start_end_the_run_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker_starts, "ONE_FAILURE_S", 0.0)
    monkeypatch.setattr(worker_starts, "MOST_FAILED_STARTS", 2)
    jobs = Jobs([("give", 1)])

    with pytest.raises(NoWorkerError, match=r"No worker process can start: .*no_such_module"):
        fit(jobs, work=loaded(tmp_path, 100))

    assert jobs.started == []


def test_starts_that_fail_do_not_count_for_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuner, "MOST_RESTARTS", 1)

    jobs = run([("give", 1)], work=loaded(tmp_path, 2))

    assert jobs.ended == {("give", 1): 1}
    assert jobs.restarted == []
