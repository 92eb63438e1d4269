"""The Ray runner, on a real Ray of two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import ray_jobs
import torch
from ray_jobs import Job

from orchestrator.driver.schedule import LATER, Later
from orchestrator.sweep_file import Resources
from orchestrator.tuning import connection as ray_connection
from orchestrator.tuning import ray_runner
from orchestrator.tuning.connection import connected
from orchestrator.tuning.ray_runner import Listener, NoWorkerError, Phase, check_resources, run_jobs
from orchestrator.tuning.ray_worker import News


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for workers to find ray_jobs
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@dataclass
class Heard:
    """What a listener was told."""

    started: list[Job] = field(default_factory=list)
    reports: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)  # with the time
    ended: dict[Job, Any] = field(default_factory=dict)
    lost: dict[Job, tuple[str, str]] = field(default_factory=dict)
    restarted: list[Job] = field(default_factory=list)

    def listener(self) -> Listener:
        return Listener(self.started.append, self._report, self._end, self._lose, self._restart)

    def processes(self) -> set[int]:
        return {result[0] for result in self.ended.values() if isinstance(result, tuple)}

    def _report(self, job: Job, values: Mapping[str, float]) -> None:
        self.reports.append((time.time(), values))

    def _end(self, job: Job, result: Any) -> None:
        assert job not in {**self.ended, **self.lost}
        self.ended[job] = result

    def _restart(self, job: Job, reason: str) -> None:
        assert reason
        self.restarted.append(job)

    def _lose(self, job: Job, status: str, error: str) -> None:
        assert job not in {**self.ended, **self.lost}
        self.lost[job] = (status, error)


def phase(*jobs: Job) -> Phase:
    waiting = iter(jobs)
    return lambda: next(waiting, None)


def run(
    phases: Sequence[Phase], heard: Heard | None = None, shared: Mapping[str, Any] | None = None
) -> Heard:
    heard = heard or Heard()
    with connected(None):
        assert run_jobs(phases, ray_jobs.do, heard.listener(), Resources(), shared)
    return heard


def until(done: Callable[[], bool], job: Callable[[int], Job], seconds: float = 300) -> Phase:
    """Gives job after job until it is done, or the time is over."""
    given = 0
    give_up = time.time() + seconds

    def ask() -> Job | None:
        nonlocal given
        given += 1
        return None if done() or time.time() > give_up else job(given)

    return ask


def test_every_job_ends_with_one_call_whatever_happens_to_it(
    two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fail", "leave", "give_unpicklable", "kill")

    monkeypatch.setattr(ray_runner, "MOST_RESTARTS", 1)

    heard = run([phase(("give", 1), *((name,) for name in names), ("give", 2))])

    errors = {job[0]: error.splitlines()[0] for job, (_, error) in heard.lost.items()}
    died = "Given up after 2 starts. The worker process died: killed, out of memory, or crashed."
    assert heard.ended == {("give", 1): 1, ("give", 2): 2}
    assert errors == {
        "fail": "ValueError: no such luck",
        "leave": "SystemExit: 3",
        "kill": died,
        "give_unpicklable": "TypeError: cannot pickle 'generator' object",
    }
    assert ", in fail\n" in heard.lost["fail",][1]
    assert {status for status, _ in heard.lost.values()} == {"failed"}
    assert set(heard.started) == {*heard.ended, *heard.lost}
    assert Counter(heard.restarted) == {("kill",): 1}
    assert Counter(heard.started)["fail",] == 1, "it would only fail again"


def test_a_job_whose_worker_is_killed_starts_again_in_another(
    two_workers: None, tmp_path: Path
) -> None:
    heard = run([phase(("kill_the_first", str(tmp_path)), ("give", 1)), phase(("give", 2))])

    job = ("kill_the_first", str(tmp_path))
    first = int((tmp_path / "first").read_text())
    assert set(heard.ended) == {job, ("give", 1), ("give", 2)}
    assert heard.ended[job] != first, "the process of its first start is dead"
    assert heard.restarted == [job]
    assert heard.lost == {}


def test_idle_workers_that_were_lost_cost_a_job_one_start_together(
    two_workers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_runner, "MOST_RESTARTS", 1)
    heard = Heard()
    first: list[Job] = [("meet", str(tmp_path), number) for number in range(2)]

    def after_both_are_killed() -> Phase:
        waiting: list[Job] = [("give", 1)]

        def ask() -> Job | None:
            if waiting:
                for process in heard.processes():
                    os.kill(process, signal.SIGKILL)
                time.sleep(1)
            return waiting.pop() if waiting else None

        return ask

    run([phase(*first), after_both_are_killed()], heard)

    assert len(heard.processes()) == 2, "both were up"
    assert heard.ended["give", 1] == 1
    assert heard.restarted == [("give", 1)]


class Loaded:
    """Work that each worker loads in its own way, the first one in the first way and so on.

    A way is a file of the folder to wait for, and whether the worker can load the work then. The
    start of worker 3 makes a file "3".
    """

    def __init__(
        self,
        folder: Path,
        *ways: tuple[str, bool],
        on_start: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._ways = iter(ways)
        self._on_start = on_start
        self._started = 0

    def __call__(self, *_: Any) -> None: ...

    def __reduce__(self) -> tuple[Any, ...]:
        self._started += 1
        name = str(self._started)
        (self._folder / name).touch()
        self._on_start(name)
        file, succeeds = next(self._ways)
        return ray_jobs.load, (self._folder / file, succeeds)


@pytest.fixture
def failed_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are the most, and each counts."""
    monkeypatch.setattr(ray_runner, "MOST_FAILED_STARTS", 2)
    monkeypatch.setattr(ray_runner, "FAILED_START_PAUSE_S", 0.0)


def test_workers_that_cannot_start_are_said_though_another_is_starting(
    two_workers: None, failed_starts: None, tmp_path: Path
) -> None:
    """By turns: when one fails, the next one has started."""
    heard = Heard()
    work = Loaded(tmp_path, *((str(number + 1), False) for number in range(1, 20)))
    with (
        connected(None),
        pytest.raises(NoWorkerError, match=r"No worker process can start: .*no_such_module"),
    ):
        run_jobs([phase(("give", 1))], work, heard.listener(), Resources())
    assert heard.started == []


def test_workers_that_cannot_start_end_nothing_while_an_older_one_starts(
    two_workers: None, failed_starts: None, tmp_path: Path
) -> None:
    heard = Heard()
    fails = ("1", False)
    work = Loaded(tmp_path, ("5", True), fails, fails, fails, ("1", True))
    with connected(None):
        assert run_jobs([phase(("give", 1))], work, heard.listener(), Resources())
    assert heard.ended == {("give", 1): 1}


def test_workers_that_cannot_start_are_counted_anew_when_one_is_lost_that_was_up(
    two_workers: None, failed_starts: None, tmp_path: Path
) -> None:
    heard = Heard()
    job = ("stay_the_first", str(tmp_path), 600)

    def kill_the_first(started: str) -> None:
        if started == "4":
            os.kill(int((tmp_path / "first").read_text()), signal.SIGKILL)

    up, fails, fails_when_one_is_up = ("1", True), ("1", False), ("first", False)
    late = ("6", True)
    work = Loaded(
        tmp_path, up, fails_when_one_is_up, fails, late, fails, up, on_start=kill_the_first
    )
    with connected(None):
        assert run_jobs([phase(job)], work, heard.listener(), Resources())
    assert heard.restarted == [job]
    assert set(heard.ended) == {job}


def test_a_worker_that_ray_killed_for_its_memory_gets_no_job_again(
    two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's error is not that of an actor that died."""
    lost: list[Any] = []
    real_get = ray.get

    def get(reference: Any) -> Any:
        found = real_get(reference)
        if not lost and isinstance(found, News) and found.ended:
            lost.append(found.result)
            os.kill(found.result, signal.SIGKILL)
            time.sleep(0.5)
            raise ray.exceptions.OutOfMemoryError("the node runs out of memory")
        return found

    monkeypatch.setattr(ray_runner.ray, "get", get)
    heard = run([phase(*(("own_process", number) for number in range(6)))])

    assert len(heard.ended) == 6 and heard.lost == {}
    assert len(heard.restarted) == 1, "no other job is given to it"
    assert lost[0] not in heard.ended.values()


def test_a_lost_object_of_rays_is_no_error_of_the_job(two_workers: None) -> None:
    heard = run([phase(("lose_an_object",))])

    assert heard.restarted == [("lose_an_object",)] * 3
    assert "ObjectLostError" in heard.lost["lose_an_object",][1].splitlines()[0]


def test_later_asks_again_when_a_job_has_ended(two_workers: None) -> None:
    heard = Heard()
    first, second = ("sleep", 0.3), ("give", 1)
    jobs = iter([first, second])
    given: list[Job | None] = []

    def ask() -> Job | Later | None:
        if given == [first] and first not in heard.ended:
            return LATER
        given.append(next(jobs, None))
        return given[-1]

    run([ask], heard)

    assert list(heard.ended) == [first, second]


def test_reports_come_while_the_job_runs_and_some_at_a_time(two_workers: None) -> None:
    heard = run([phase(("count", 25, 0.1))])

    times = [at for at, _ in heard.reports]
    parcels = 1 + sum(later - earlier > 0.5 for earlier, later in pairwise(times))
    assert [values["number"] for _, values in heard.reports] == list(range(25))
    assert 2 <= parcels <= 4, "one a second, and one at the end"


def test_a_phase_begins_when_the_one_before_has_ended(two_workers: None) -> None:
    first = [("sleep", 0.5), ("sleep", 0.1), ("sleep", 0.2)]
    second = [("sleep", 0.11), ("sleep", 0.12)]

    heard = run([phase(*first), phase(), phase(*second)])

    assert min(heard.ended[job][1] for job in second) >= max(heard.ended[job][2] for job in first)


def test_all_places_are_used_and_a_search_is_asked_when_one_is_free(two_workers: None) -> None:
    """Also those whose worker is up last."""
    heard = Heard()
    running: list[int] = []

    def job(number: int) -> Job:
        running.append(number - 1 - len(heard.ended))
        return ("sleep", 0.05, number)

    def both_have_worked() -> bool:
        return len(heard.ended) >= 20 and len(heard.processes()) == 2

    run([until(both_have_worked, job)], heard)

    assert both_have_worked()
    assert max(running) == 1, "when another is asked for; two run at a time"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_processes_read_one_copy_of_what_is_shared(two_workers: None) -> None:
    n_bytes = 64 * 2**20
    shared = {
        name: {"pixels": torch.ones(n, dtype=torch.uint8)}
        for name, n in (("small", 2**20), ("large", n_bytes))
    }
    heard = Heard()

    def both_have_read() -> bool:
        return len(heard.processes()) == 2

    run([until(both_have_read, lambda number: ("read", number))], heard, shared)

    assert both_have_read()
    assert {total for _, total, _ in heard.ended.values()} == {n_bytes}
    assert max(growth for _, _, growth in heard.ended.values()) < n_bytes / 8


def test_sigterm_cancels_what_runs(two_workers: None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    heard = Heard()
    job = ("count", 600, 0.1)
    told = heard.listener()

    def terminate(job: Job, values: Mapping[str, float]) -> None:
        told.on_report(job, values)
        os.kill(os.getpid(), signal.SIGTERM)

    listener = Listener(told.on_start, terminate, told.on_end, told.on_lost)
    with connected(None):
        whole = run_jobs([phase(job)], ray_jobs.do, listener, Resources())

    assert not whole
    assert heard.lost == {job: ("stopped", "Stopped: the sweep was interrupted.")}
    assert signal.getsignal(signal.SIGTERM) is before
    process = int(heard.reports[0][1]["process"])
    give_up = time.time() + 20
    while _runs(process) and time.time() < give_up:
        time.sleep(0.05)
    assert not _runs(process)


def test_what_the_listener_raises_is_raised_as_it_is(two_workers: None) -> None:
    def full(job: Job, result: Any) -> None:
        raise OSError("no space left on device")

    heard = Heard().listener()
    listener = Listener(heard.on_start, heard.on_report, full, heard.on_lost)

    with connected(None), pytest.raises(OSError, match="no space left"):
        run_jobs([phase(("give", 1))], ray_jobs.do, listener, Resources())


def test_resources_that_no_machine_has_are_refused(two_workers: None) -> None:
    with pytest.raises(ValueError, match="the 3 CPUs, 0 GPUs and 0 GB of memory that a trial asks"):
        check_resources(Resources(cpus=3))
    with pytest.raises(ValueError, match=r"the 1 CPUs, 0\.5 GPUs"):
        check_resources(Resources(gpus=0.5))
    with pytest.raises(ValueError, match=r"0 GPUs and 100000 GB of memory"):
        check_resources(Resources(memory_gb=100_000))


def test_as_many_jobs_run_at_a_time_as_there_is_memory_for(two_workers: None) -> None:
    """The two cores would do two."""
    memory_gb = 0.6 * ray.cluster_resources()["memory"] / 1e9
    heard = Heard()
    jobs = [("sleep", 0.2, number) for number in range(3)]

    with connected(None):
        resources = Resources(memory_gb=memory_gb)
        assert run_jobs([phase(*jobs)], ray_jobs.do, heard.listener(), resources)

    spells = sorted(heard.ended.values(), key=lambda spell: spell[1])
    assert all(earlier[2] <= later[1] for earlier, later in pairwise(spells))


ONE_GPU = """
import json, ray, ray_jobs, sys
from orchestrator.tuning.connection import connected
from orchestrator.tuning.ray_runner import Listener, run_jobs
from orchestrator.sweep_file import Resources

seen = []
nothing = lambda *_: None
listener = Listener(nothing, nothing, lambda job, result: seen.append(result), nothing)
jobs = iter([("see_gpus", sys.argv[1], number) for number in range(4)])
ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
with connected(None):
    run_jobs([lambda: next(jobs, None)], ray_jobs.do, listener, Resources(gpus=0.5))
ray.shutdown()
print(json.dumps(seen))
"""


def test_two_jobs_share_a_gpu_at_a_time(tmp_path: Path) -> None:
    """A GPU that Ray was told of; none is needed."""
    driver = subprocess.run(
        [sys.executable, "-c", ONE_GPU, str(tmp_path)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert driver.returncode == 0, driver.stderr
    seen = json.loads(driver.stdout)
    assert [devices for devices, _ in seen] == ["0"] * 4
    spells = [(began, ended) for _, (_, began, ended) in seen]
    assert max(sum(began <= at < ended for began, ended in spells) for at, _ in spells) == 2


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"Cannot join .*127.0.0.1:1.*Start one with `ray start"):
        ray_connection._join("127.0.0.1:1")
    with pytest.raises(ValueError, match="ray job submit"):
        ray_connection._join("ray://127.0.0.1:10001")
    assert time.monotonic() - started < 10


def test_settings_of_the_user_stand_and_ours_go_again(
    two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", raising=False)

    with connected(None):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
        assert os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    assert "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO" not in os.environ


SWEEP = """
import sys, time
from orchestrator.tuning.connection import connected
from orchestrator.tuning.ray_runner import Listener, run_jobs
from orchestrator.sweep_file import Resources
import my_package.work

def say(*what):
    print(*what, flush=True)

ends = []
with connected(None):
    jobs = iter([("short",), ("long",)])
    listener = Listener(
        on_start=lambda job: None,
        on_report=lambda job, values: say("report", *job),
        on_end=lambda job, result: say("ended", *job, result),
        on_lost=lambda job, status, error: say("lost", *job, status, error),
    )
    whole = run_jobs([lambda: next(jobs, None)], my_package.work.do, listener, Resources())
say("whole", whole)
sys.exit(0 if whole else 130)
"""
WORK = """
import time

def do(job, shared, report):
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
    driver = subprocess.Popen(
        [sys.executable, "-c", SWEEP],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": "."},
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
        "lost long stopped Stopped: the sweep was interrupted.",
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
