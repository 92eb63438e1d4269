"""Drivers and workers that are killed cost no trial and double none."""

import math
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from disturbed import WHOLE, DisturbedSweep, assert_whole, figures
from optuna.storages import InMemoryStorage

from orchestrator.plan import studies
from orchestrator.search import Proposer
from orchestrator.sweep_file import load_sweep
from orchestrator.trial import main as trial_main

KILLS_OF_DRIVERS = 20 if WHOLE else 1
KILLS_OF_WORKERS = 10 if WHOLE else 1
TRIALS = 24 if WHOLE else 4
BY = "tests.faults.methods:Fades.by"

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=TRIALS)
    yield disturbed
    disturbed.kill_all()


def assert_as_undisturbed(sweep: DisturbedSweep, tmp_path: Path) -> None:
    """The rows are those of a sweep that nothing happened to, but for times.

    Its options are what the search draws in one go; its figures come from one plain process.
    """
    plan = load_sweep(sweep.path)
    proposer = Proposer(studies(plan), plan.objectives, plan.search, InMemoryStorage())
    drawn = {}
    while (trial := proposer.ask()) is not None:
        drawn[trial.trial_id] = trial.options.get("by", math.nan)
    rows = sweep.rows()
    assert dict(zip(rows["trial_id"], rows[BY], strict=True)) == pytest.approx(drawn, nan_ok=True)

    (tmp_path / "calm").mkdir()
    calm = DisturbedSweep(tmp_path / "calm", trials=sweep.n_trials - 1)
    grid = {"grid": [by for by in drawn.values() if not math.isnan(by)]}
    methods = f"methods={{dense: {{}}, '{BY.rpartition('.')[0]}': {{by: {grid}}}}}"
    arguments = [str(calm.path), "--output", str(calm.folder.parent), "--set", methods]
    assert trial_main(arguments) == 0
    found, expected = (
        figures(table).drop(columns=["trial_id", "cell", "study"]).sort_values(["method", BY])
        for table in (rows, calm.rows())
    )
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), expected[found.columns].reset_index(drop=True)
    )


def test_drivers_killed_at_random_moments_cost_nothing(
    sweep: DisturbedSweep, tmp_path: Path
) -> None:
    draw = random.Random(5)
    kills = 0
    while kills < KILLS_OF_DRIVERS:
        begun = sweep.ended()
        driver = sweep.start()
        if draw.random() < 0.5:  # at some moment of its life, or soon after a trial has ended
            end = time.monotonic() + draw.uniform(0, 30)
            while time.monotonic() < end and driver.poll() is None:
                time.sleep(0.05)
        else:
            sweep.wait_for(begun + 1, driver)
            time.sleep(draw.uniform(0, 0.3))
        if driver.poll() is None:
            kill = os.killpg if kills % 2 else os.kill  # the driver alone, or its whole group
            kill(driver.pid, signal.SIGKILL)
            kills += 1
        driver.communicate()
        if sweep.ended() == sweep.n_trials:
            break
    assert sweep.wait_for_all_to_end() == {}, "what a killed driver started dies by itself"
    sweep.finish()
    assert_whole(sweep)
    assert_as_undisturbed(sweep, tmp_path)


def test_killed_workers_cost_no_trial(sweep: DisturbedSweep) -> None:
    draw = random.Random(6)
    driver = sweep.start()
    kills = 0
    while kills < KILLS_OF_WORKERS and driver.poll() is None:
        sweep.wait_for(1, driver)
        time.sleep(draw.uniform(0.2, 2))
        if workers := sweep.workers():
            os.kill(draw.choice(workers), signal.SIGKILL)
            kills += 1
    driver.communicate()
    sweep.finish("--retry-failed")
    assert_whole(sweep)
