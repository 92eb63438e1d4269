"""The report of a sweep that still runs, made by another process at any moment."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import WHOLE, DisturbedSweep

from orchestrator.commands.report import main as report_main

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path)
    yield disturbed
    disturbed.kill_all()


def test_a_half_done_sweep_is_reported_while_it_is_written(sweep: DisturbedSweep) -> None:
    bys = [n / 100 for n in range(1, 17 if WHOLE else 5)]
    methods = f"methods={{'tests.faults.methods:Fades': {{by: {{grid: {bys}}}}}}}"
    driver = sweep.start("--set", methods, module="orchestrator.trial")
    for ended in range(1, 1 + len(bys)):
        sweep.wait_for(ended, driver)
        assert report_main([str(sweep.folder)]) == 0
        assert (sweep.folder / "report.html").read_text().rstrip().endswith("</html>")
    printed, _ = driver.communicate()
    assert driver.returncode == 0, printed
    assert list(sweep.rows()["status"]) == ["completed"] * len(bys)
