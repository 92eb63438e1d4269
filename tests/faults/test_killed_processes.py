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

from orchestrator.commands.trial import main as trial_main
from orchestrator.plan import studies
from orchestrator.search.proposer import Proposer
from orchestrator.sweep_file import load_sweep

KILLS_OF_DRIVERS = 20 if WHOLE else 1
KILLS_OF_WORKERS = 10 if WHOLE else 1
BY = "tests.faults.methods:Fades.by"

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=120 if WHOLE else 4)
    yield disturbed
    disturbed.kill_all()


def assert_drawn_as_undisturbed(sweep: DisturbedSweep) -> None:
    """The options are what the search draws in one go."""
    plan = load_sweep(sweep.path)
    proposer = Proposer(studies(plan), plan.objectives, plan.search, InMemoryStorage())
    drawn = {}
    while (trial := proposer.ask()) is not None:
        drawn[trial.trial_id] = trial.options.get("by", math.nan)
    rows = sweep.rows()
    assert dict(zip(rows["trial_id"], rows[BY], strict=True)) == pytest.approx(drawn, nan_ok=True)


def assert_figures_as_undisturbed(sweep: DisturbedSweep, tmp_path: Path) -> None:
    """The figures are those of one plain process with the same options, but for times."""
    rows = sweep.rows()
    (tmp_path / "calm").mkdir()
    calm = DisturbedSweep(tmp_path / "calm", trials=sweep.n_trials - 1)
    grid = {"grid": rows[BY].dropna().tolist()}
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


@pytest.mark.usefixtures("two_workers")
def test_drivers_killed_at_random_moments_cost_nothing(
    sweep: DisturbedSweep, tmp_path: Path
) -> None:
    """Nor does it where the last bytes of their files were lost."""
    kill_at_random_moments(sweep, KILLS_OF_DRIVERS)
    for path, n_bytes in (("studies.journal", 10), ("trials.csv", 20)):
        with (sweep.folder / path).open("r+b") as file:
            file.truncate((sweep.folder / path).stat().st_size - n_bytes)
    sweep.finish()
    assert_whole(sweep)
    assert_drawn_as_undisturbed(sweep)
    assert_figures_as_undisturbed(sweep, tmp_path)


@pytest.mark.skipif(not WHOLE, reason="`make faults`; the test above kills a driver too")
def test_rows_of_a_search_that_learns_can_be_run_again_from_their_options(tmp_path: Path) -> None:
    sweep = DisturbedSweep(tmp_path, sampler="tpe", trials=20)
    try:
        kill_at_random_moments(sweep, 5)
        sweep.finish()
        assert_whole(sweep)
        assert_figures_as_undisturbed(sweep, tmp_path)
    finally:
        sweep.kill_all()


def kill_at_random_moments(sweep: DisturbedSweep, n_kills: int) -> None:
    """Starts drivers and kills them, so often or until the sweep has ended."""
    draw = random.Random(5)
    kills = 0
    while kills < n_kills:
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
    print(f"{kills} drivers were killed; {sweep.ended()} of {sweep.n_trials} trials had ended.")
    assert kills == n_kills, "the sweep has ended too soon"
    assert sweep.wait_for_all_to_end() == {}, "what a killed driver started dies by itself"


@pytest.mark.usefixtures("two_workers")
def test_killed_workers_cost_no_trial(sweep: DisturbedSweep) -> None:
    killed: list[int] = []

    def disturb() -> None:
        draw = random.Random(6)
        while len(killed) < KILLS_OF_WORKERS and not sweep.over.is_set():
            sweep.wait_for(1 + 2 * len(killed))  # or one job would lose too many workers in a row
            time.sleep(draw.uniform(0.1, 0.5))
            if workers := sweep.workers():
                killed.append(draw.choice(workers))
                os.kill(killed[-1], signal.SIGKILL)

    printed = sweep.run_disturbed(disturb)
    print(f"{len(killed)} workers were killed.")
    assert len(killed) == KILLS_OF_WORKERS, "the sweep has ended too soon"
    assert printed.count("resumes in another process. The worker process died") == len(killed)
    assert_whole(sweep)
