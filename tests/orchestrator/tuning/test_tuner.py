"""The tuner, on a real Ray of two workers."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from job_source import Jobs, fit, run, until
from ray_jobs import Job

from orchestrator.plan.jobs import Outcome
from orchestrator.sweep_file import EarlyStopping, Resources
from orchestrator.tuning.callbacks.job_callback import JobCallback
from orchestrator.tuning.places import Places
from orchestrator.tuning.scheduler import MultiObjectiveASHA
from orchestrator.tuning.trainable import JOB, RUNG

TESTS = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("two_workers")


@dataclass(frozen=True)
class Ran:
    """A run of several parts, for the tests that look at one of them."""

    jobs: Jobs
    results: Any
    not_found: list[Exception]
    """Files of results that Ray Tune missed."""


N_SHARED = 64 * 2**20
ALONE: list[Job] = [("own_process", number) for number in range(2)]
COUNTED: Job = ("count", 25, 0.1)
FIRST: list[Job] = [("sleep", 0.5), ("sleep", 0.1), ("sleep", 0.2)]
SECOND: list[Job] = [("sleep", 0.11), ("sleep", 0.12)]


def pair(folder: Path, number: int) -> list[Job]:
    """Two jobs that end only if they run side by side."""
    return [("meet", str(folder), 2 * number), ("meet", str(folder), 2 * number + 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meet")


@pytest.fixture(scope="module")
def ran(two_workers: None, folder: Path) -> Ran:
    """One job at first, though more than one is expected."""
    shared = {
        name: {"pixels": torch.ones(n, dtype=torch.uint8)}
        for name, n in (("small", 2**20), ("large", N_SHARED))
    }
    both_read = until(lambda: len(readers(jobs)) == 2, lambda number: ("read", number))
    parts = ALONE[:1], pair(folder, 0), ALONE[1:], pair(folder, 1), [COUNTED], FIRST, [], SECOND
    jobs = Jobs(*parts, both_read)
    results = fit(jobs, expected=7, shared=shared)
    alive = [each for each in gc.get_objects() if type(each) is FileNotFoundError]
    return Ran(jobs, results, [each for each in alive if "fetch metrics" in str(each)])


def readers(jobs: Jobs) -> set[int]:
    return {result[0] for job, result in jobs.ended.items() if job[0] == "read"}


def test_reports_come_while_the_job_runs_and_some_at_a_time(ran: Ran) -> None:
    times = [at for at, _ in ran.jobs.reports]
    parcels = 1 + sum(later - earlier > 0.5 for earlier, later in pairwise(times))
    assert [values["number"] for _, values in ran.jobs.reports] == list(range(25))
    assert 2 <= parcels <= 4, "one a second, and one at the end"


def test_a_part_begins_when_the_one_before_has_ended(ran: Ran) -> None:
    ended = ran.jobs.ended
    assert min(ended[job][1] for job in SECOND) >= max(ended[job][2] for job in FIRST)


def test_all_workers_start_at_once_and_are_kept_though_there_is_one_job_at_first(
    ran: Ran, folder: Path
) -> None:
    before, after = ({ran.jobs.ended[job][0] for job in pair(folder, n)} for n in range(2))
    assert len(before) == 2 and before == after, "an idle worker waits for its next job"
    assert sum("start_of_a_worker" in result.path for result in ran.results) == 1
    assert ran.jobs.started.count(ALONE[0]) == 1, "nobody hears of what only starts one"
    assert len(ran.jobs.started) == len(ran.jobs.told)


def test_tunes_own_results_have_the_jobs_names(ran: Ran) -> None:
    names = [Path(result.path).name.partition("-")[0] for result in ran.results]
    assert sorted(set(names) - {"start_of_a_worker"}) == sorted({job[0] for job in ran.jobs.ended})
    assert len(names) == len(ran.jobs.ended) + 1
    assert ran.results.num_errors == 0


def test_nothing_is_kept_of_files_of_results_that_are_not_written(ran: Ran) -> None:
    assert ran.not_found == []


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_processes_read_one_copy_of_what_is_shared(ran: Ran) -> None:
    read = [result for job, result in ran.jobs.ended.items() if job[0] == "read"]
    assert len(readers(ran.jobs)) == 2, "both have read"
    assert {total for _, total, _ in read} == {N_SHARED}
    assert max(growth for _, _, growth in read) < N_SHARED / 8


def test_all_places_are_used_and_a_search_is_asked_when_one_is_free() -> None:
    """Also those whose worker is up last."""
    running: list[int] = []

    def job(number: int) -> Job:
        running.append(jobs.running)
        return ("sleep", 0.05, number)

    def both_have_worked() -> bool:
        return len(jobs.ended) >= 20 and len(jobs.processes()) == 2

    jobs = Jobs(until(both_have_worked, job))
    fit(jobs)

    assert both_have_worked()
    assert max(running) == 1, "when another is asked for; two run at a time"


def test_the_trial_that_is_not_in_the_better_part_is_stopped_at_its_rung() -> None:
    """One after another; what it comes to is what it said of itself at the rung."""
    better, worse = ("climb", 0.9, 3), ("climb", 0.1, 3)
    scheduler = MultiObjectiveASHA(
        {"value": "maximize", "cost": "minimize"},
        EarlyStopping(min_epochs=2, reduction=2),
        time_attr=RUNG,
        name=lambda trial: ("all", str(trial.config[JOB])),
    )

    jobs = run([better], [worse], [("give", 1)], scheduler=scheduler)

    assert jobs.ended == {better: "at the top", worse: "stopped at 2", ("give", 1): 1}
    assert [values for _, values in jobs.reports] == [{"epoch": n} for n in (1, 2, 3, 1, 2)]


def test_what_a_callback_raises_is_raised_as_it_is() -> None:
    class FullDisk(JobCallback):
        def job_ended(self, job: Job, outcome: Outcome) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        fit(Jobs([("give", 1)]), FullDisk())


def test_what_the_source_raises_is_raised_as_it_is() -> None:
    class Deaf(Jobs):
        def tell(self, job: Job, outcome: Outcome) -> None:
            raise OSError("the journal is full")

    with pytest.raises(OSError, match="the journal is full"):
        fit(Deaf([("give", 1)]))


def test_resources_that_no_machine_has_are_refused() -> None:
    with pytest.raises(ValueError, match="the 3 CPUs, 0 GPUs and 0 GB of memory that a trial asks"):
        Places(Resources(cpus=3))
    with pytest.raises(ValueError, match=r"the 1 CPUs, 0\.5 GPUs"):
        Places(Resources(gpus=0.5))
    with pytest.raises(ValueError, match=r"0 GPUs and 100000 GB of memory"):
        Places(Resources(memory_gb=100_000))


def test_as_many_jobs_run_at_a_time_as_there_is_memory_for() -> None:
    """The two cores would do two."""
    memory_gb = 0.6 * ray.cluster_resources()["memory"] / 1e9

    jobs = run(
        [("sleep", 0.2, number) for number in range(3)], resources=Resources(memory_gb=memory_gb)
    )

    spells = sorted(jobs.ended.values(), key=lambda spell: spell[1])
    assert all(earlier[2] <= later[1] for earlier, later in pairwise(spells))


ONE_GPU = """
import json, ray, sys
from orchestrator.sweep_file import Resources
from tests.job_source import Jobs, fit

ray.init("local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False)
jobs = Jobs([("see_gpus", sys.argv[1], number) for number in range(4)])
fit(jobs, resources=Resources(gpus=0.5))
ray.shutdown()
print(json.dumps(list(jobs.ended.values())))
"""


def test_two_jobs_share_a_gpu_at_a_time(tmp_path: Path) -> None:
    """A GPU that Ray was told of; none is needed."""
    driver = subprocess.run(
        [sys.executable, "-c", ONE_GPU, str(tmp_path)],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
    )
    assert driver.returncode == 0, driver.stderr
    seen = json.loads(driver.stdout)
    assert [devices for devices, _ in seen] == ["0"] * 4
    spells = [(began, ended) for _, (_, began, ended) in seen]
    assert max(sum(began <= at < ended for began, ended in spells) for at, _ in spells) == 2
