"""Runs of jobs that a signal stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from job_source import Jobs, fit
from ray_jobs import Job

from orchestrator.plan.jobs import Lost
from orchestrator.tuning.callbacks.job_callback import JobCallback

TESTS = Path(__file__).parents[2]


@pytest.mark.usefixtures("two_workers")
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


SWEEP = """
import sys
import my_package.work
from orchestrator.sweep_file import Resources
from tests.job_source import Jobs, fit

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
