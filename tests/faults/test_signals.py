"""Ctrl-C and SIGTERM: once ends what is being written, twice stops now; the sweep is resumed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import DisturbedSweep, assert_whole

from orchestrator.commands.trial import main as trial_main

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=4, workers=1)
    yield disturbed
    disturbed.kill_all()


@pytest.mark.usefixtures("two_workers")
def test_sigterm_writes_the_report_and_ctrl_c_twice_stops_at_once(sweep: DisturbedSweep) -> None:
    """One sweep, which meets both and is resumed each time."""
    driver = sweep.start()
    sweep.wait_for(2, driver)
    driver.terminate()  # to the driver alone, as a cluster's scheduler sends it
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed
    assert f"Resume with: python -m orchestrator.sweep {sweep.path}" in printed
    assert (sweep.folder / "report.html").exists()
    assert set(sweep.rows()["status"]) == {"completed", "stopped"}
    assert sweep.wait_for_all_to_end() == {}

    driver = sweep.start()
    sweep.wait_for(3, driver)
    for _ in range(2):
        os.killpg(driver.pid, signal.SIGINT)  # to all processes, as a terminal does
        time.sleep(0.02)
    begun = time.monotonic()
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed
    assert time.monotonic() - begun < 30
    assert "Resume with:" in printed and "Traceback" not in printed
    assert sweep.wait_for_all_to_end() == {}
    sweep.finish()
    assert_whole(sweep)


def test_without_ray_sigterm_does_the_same(sweep: DisturbedSweep) -> None:
    methods = "methods={dense: {}, 'tests.faults.methods:Fades': {by: {grid: [0.1, 0.2, 0.3]}}}"
    driver = sweep.start("--set", methods, module="orchestrator.trial")
    sweep.wait_for(2, driver)
    time.sleep(0.5)  # the next takes a second
    driver.terminate()
    printed, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed
    assert "Resume with:" in printed and "Traceback" not in printed
    assert (sweep.folder / "report.html").exists()
    assert list(sweep.rows()["status"]).count("stopped") == 1
    sweep.finish("--set", methods, main=trial_main)
    assert list(sweep.rows()["status"]) == ["completed"] * 4
