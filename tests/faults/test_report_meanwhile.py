"""The report of a sweep that still runs, made by another process at any moment."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import PROJECT, WHOLE, DisturbedSweep, assert_whole

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=16 if WHOLE else 4)
    yield disturbed
    disturbed.kill_all()


def test_a_half_done_sweep_is_reported_while_it_is_written(sweep: DisturbedSweep) -> None:
    driver = sweep.start()
    sweep.wait_for(1, driver)
    reports = 0
    while driver.poll() is None or reports == 0:
        report = subprocess.run(
            [sys.executable, "-m", "orchestrator.report", sweep.folder],
            cwd=PROJECT, capture_output=True, text=True,
        )  # fmt: skip
        assert report.returncode == 0, report.stderr
        assert (sweep.folder / "report.html").read_text().rstrip().endswith("</html>")
        reports += 1
    printed, _ = driver.communicate()
    assert driver.returncode == 0, printed
    assert_whole(sweep)
