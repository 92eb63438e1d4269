"""The tuner, on a real Ray of two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import ray_jobs
import torch
from ray_jobs import Job

from orchestrator.plan.jobs import Lost, Outcome
from orchestrator.sweep_file import EarlyStopping, Resources
from orchestrator.tuning import tuner
from orchestrator.tuning.callbacks import worker_starts
from orchestrator.tuning.callbacks.job_callback import JobCallback
from orchestrator.tuning.callbacks.worker_starts import NoWorkerError
from orchestrator.tuning.connection import connected
from orchestrator.tuning.places import Places
from orchestrator.tuning.scheduler import MultiObjectiveASHA
from orchestrator.tuning.trainable import JOB, RUNG
from orchestrator.tuning.tuner import run_jobs

TESTS = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("two_workers")


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


def test_every_job_ends_with_one_call_whatever_happens_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuner, "MOST_RESTARTS", 1)

    jobs = run([("give", 1), ("fail",), ("leave",), ("kill",), ("give", 2)])

    errors = {job[0]: lost.error.splitlines()[0] for job, lost in jobs.lost.items()}
    died = "Given up after 2 starts. The worker process died: killed, out of memory, or crashed."
    assert jobs.ended == {("give", 1): 1, ("give", 2): 2}
    assert errors == {"fail": "ValueError: no such luck", "leave": "SystemExit: 3", "kill": died}
    assert ", in fail\n" in jobs.lost["fail",].error
    assert {lost.status for lost in jobs.lost.values()} == {"failed"}
    assert set(jobs.started) == {*jobs.ended, *jobs.lost}
    assert jobs.restarted == [("kill",)]
    assert jobs.started.count(("fail",)) == 1, "it would only fail again"


def test_a_job_whose_worker_is_killed_starts_again_in_another(tmp_path: Path) -> None:
    job = ("kill_the_first", str(tmp_path))

    jobs = run([job, ("give", 1)], [("give", 2)])

    first = int((tmp_path / "first").read_text())
    assert set(jobs.ended) == {job, ("give", 1), ("give", 2)}
    assert jobs.ended[job] != first, "the process of its first start is dead"
    assert jobs.restarted == [job]


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
    jobs = Jobs([("give", 1), ("give", 2)])

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


def test_a_lost_object_of_rays_is_no_error_of_the_job() -> None:
    jobs = run([("lose_an_object",)])

    assert jobs.restarted == [("lose_an_object",)] * 3
    assert "ObjectLostError" in jobs.lost["lose_an_object",].error.splitlines()[0]


def test_reports_come_while_the_job_runs_and_some_at_a_time() -> None:
    jobs = run([("count", 25, 0.1)])

    times = [at for at, _ in jobs.reports]
    parcels = 1 + sum(later - earlier > 0.5 for earlier, later in pairwise(times))
    assert [values["number"] for _, values in jobs.reports] == list(range(25))
    assert 2 <= parcels <= 4, "one a second, and one at the end"


def test_a_part_begins_when_the_one_before_has_ended() -> None:
    first = [("sleep", 0.5), ("sleep", 0.1), ("sleep", 0.2)]
    second = [("sleep", 0.11), ("sleep", 0.12)]

    jobs = run(first, [], second)

    assert min(jobs.ended[job][1] for job in second) >= max(jobs.ended[job][2] for job in first)


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


def test_all_workers_start_at_once_and_are_kept_though_there_is_one_job_at_first(
    tmp_path: Path,
) -> None:
    first = [("own_process", 0)]
    pairs = [[("meet", str(tmp_path), 2 * n), ("meet", str(tmp_path), 2 * n + 1)] for n in range(2)]
    jobs = Jobs(first, pairs[0], [("own_process", 1)], pairs[1])

    results = fit(jobs, expected=7)

    before, after = ({jobs.ended[job][0] for job in pair} for pair in pairs)
    assert len(before) == 2 and before == after, "an idle worker waits for its next job"
    assert sum("start_of_a_worker" in result.path for result in results) == 1
    assert jobs.started.count(("own_process", 0)) == 1, "nobody hears of what only starts one"
    assert len(jobs.started) == 6


def test_tunes_own_results_have_the_jobs_names() -> None:
    jobs = Jobs([("give", 1), ("sleep", 0.1)])

    results = fit(jobs)

    assert sorted(Path(result.path).name.partition("-")[0] for result in results) == [
        "give",
        "sleep",
    ]
    assert results.num_errors == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_processes_read_one_copy_of_what_is_shared() -> None:
    n_bytes = 64 * 2**20
    shared = {
        name: {"pixels": torch.ones(n, dtype=torch.uint8)}
        for name, n in (("small", 2**20), ("large", n_bytes))
    }
    jobs = Jobs(until(lambda: len(jobs.processes()) == 2, lambda number: ("read", number)))

    fit(jobs, shared=shared)

    assert len(jobs.processes()) == 2, "both have read"
    assert {total for _, total, _ in jobs.ended.values()} == {n_bytes}
    assert max(growth for _, _, growth in jobs.ended.values()) < n_bytes / 8


def test_sigterm_cancels_what_runs() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    job = ("count", 600, 0.1)

    class Terminates(JobCallback):
        def job_reported(self, job: Job, reports: Sequence[Mapping[str, float]]) -> None:
            if reports:
                os.kill(os.getpid(), signal.SIGTERM)

    jobs = Jobs([job])

    assert fit(jobs, Terminates()) is None

    assert jobs.lost == {job: Lost("stopped", "Stopped: the sweep was interrupted.")}
    assert all(signal.getsignal(number) is handler for number, handler in before.items())
    process = int(jobs.reports[0][1]["process"])
    give_up = time.time() + 20
    while _runs(process) and time.time() < give_up:
        time.sleep(0.05)
    assert not _runs(process)


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
from tests.orchestrator.tuning.test_tuner import Jobs, fit

ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
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


SWEEP = """
import sys
import my_package.work
from orchestrator.sweep_file import Resources
from tests.orchestrator.tuning.test_tuner import Jobs, fit

def say(*what):
    print(*what, flush=True)

class Told(Jobs):
    def job_reported(self, job, reports):
        for _ in reports:
            say("report", *job)

    def job_ended(self, job, outcome):
        say("ended", *job, getattr(outcome, "status", outcome), getattr(outcome, "error", ""))

results = fit(Told([("short",), ("long",)]), work=my_package.work.do)
say("whole", results is not None)
sys.exit(130 if results is None else 0)
"""
WORK = """
import time

def do(job, shared, report, tell_rung):
    if job == ("short",):
        return __name__
    while True:
        report({"alive": 1})
        time.sleep(0.1)
"""


def test_ctrl_c_stops_the_sweep_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also: workers import from where the sweep started, and only our own words are printed."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "work.py").write_text(WORK)
    paths = [".", str(TESTS.parent), str(TESTS)]
    driver = subprocess.Popen(
        [sys.executable, "-c", SWEEP],
        cwd=tmp_path,
        env={
            **os.environ,
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    words = []
    with driver:
        assert driver.stdout
        for line in driver.stdout:
            if line != "report long\n":
                words.append(line.strip())
            elif "interrupted" not in words:
                words.append("interrupted")
                os.killpg(driver.pid, signal.SIGINT)  # to all processes, as a terminal does
    assert words == [
        "ended short my_package.work",
        "interrupted",
        "ended long stopped Stopped: the sweep was interrupted.",
        "whole False",
    ]
    assert driver.returncode == 130
    assert _processes_of_session(driver.pid) == []
    assert not (tmp_path / "home" / "ray_results").exists()


def _processes_of_session(session: int) -> list[str]:
    table = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True)
    rows = (line.split(None, 1) for line in table.stdout.splitlines()[1:])
    return [args for sid, args in rows if int(sid) == session]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
