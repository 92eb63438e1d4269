"""Confirmation: a frontier's points run again with fresh seeds, and these alone are tested."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.analysis.pareto import to_be_tested
from orchestrator.commands.trial import main
from orchestrator.plan import Trial, confirmations, dense_networks, make_plan
from orchestrator.plan.dry_run import describe
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.sweep_file import load_sweep
from testbed.data import DataOptions, load_test_images
from tests.small_sweeps import write
from tests.trial_points import OBJECTIVES, trials

METHODS = """
methods:
  dense: {}
  l1_filter: {keep_ratio: {grid: [0.25, 0.5]}}
  magnitude: {threshold: 1.0}
"""
FIGURES = [
    "val_accuracy", "train_accuracy", "multiplications", "nonzero_multiplications",
    "dense_val_accuracy", "validation_images",
]  # fmt: skip


def run(folder: Path, name: str, rest: str, methods: str = METHODS) -> pd.DataFrame:
    """The rows of a sweep in one process."""
    sweep = write(folder, name, methods + rest)
    assert main([str(sweep), "--output", str(folder / "runs")]) == 0
    return read_trials(folder / "runs" / name / "trials.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep `confirmed` has run: seed 0, confirmed with two fresh ones."""
    path = tmp_path_factory.mktemp("confirmed")
    run(path, "confirmed", "confirm: {seeds: 2}\n")
    return path


@pytest.fixture
def rows(folder: Path) -> pd.DataFrame:
    return read_trials(folder / "runs" / "confirmed" / "trials.csv")


def test_every_point_on_a_frontier_runs_again_with_each_fresh_seed(
    folder: Path, rows: pd.DataFrame
) -> None:
    points = read_trials(folder / "runs" / "confirmed" / "frontier.csv")
    assert set(points["phase"]) == {"search"} and set(points["seed"]) == {0}
    again = rows[rows["phase"] == "confirmation"]
    expected = {(trial_id, seed) for trial_id in points["trial_id"] for seed in (1, 2)}
    assert set(zip(again["confirms"], again["seed"], strict=True)) == expected
    assert len(again) == len(expected) and set(again["status"]) == {"completed"}
    options = ["method", "cell", "l1_filter.keep_ratio", "magnitude.threshold"]
    first = rows.set_index("trial_id").loc[again["confirms"], options].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[options].reset_index(drop=True), first)


def test_confirmations_alone_meet_the_test_images(rows: pd.DataFrame) -> None:
    tested = rows["test_accuracy"].notna()
    assert list(tested) == list(rows["phase"] == "confirmation")
    n_images = len(load_test_images(DataOptions(name="digits"), Path()))
    assert set(rows["test_images"][tested]) == {n_images}


@pytest.mark.usefixtures("no_report")
def test_a_confirmation_is_what_a_sweep_with_that_seed_finds(
    tmp_path: Path, rows: pd.DataFrame
) -> None:
    """Dense network and split are the fresh seed's too."""
    alone = run(tmp_path, "alone", "seeds: [2]\n").set_index("trial_id")
    again = rows[(rows["phase"] == "confirmation") & (rows["seed"] == 2)]
    names = [confirms.replace("-s0-", "-s2-") for confirms in again["confirms"]]
    expected = alone.loc[names, FIGURES].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[FIGURES].reset_index(drop=True), expected)
    assert again["dense_val_accuracy"].iloc[0] != rows["dense_val_accuracy"].iloc[0]


def test_without_confirmation_the_frontiers_own_networks_are_tested() -> None:
    frame = trials([(0.9, 50), (0.8, 60), (0.7, 40)])
    assert to_be_tested(frame, OBJECTIVES) == ["t000", "t002"]
    frame["phase"] = ["search", "search", "confirmation"]
    assert to_be_tested(frame, OBJECTIVES) == ["t002"]
    frame["status"] = ["completed", "completed", "failed"]
    assert to_be_tested(frame, OBJECTIVES) == []


@pytest.mark.parametrize(
    ("seeds", "fresh"), [([0], (1, 2, 3)), ([0, 2], (1, 3, 4)), ([7, 2**32 - 1], (0, 1, 2))]
)
def test_fresh_seeds_are_the_least_that_the_search_does_not_use(
    tmp_path: Path, seeds: Sequence[int], fresh: Sequence[int]
) -> None:
    rest = f"seeds: {seeds}\n"
    assert load_sweep(write(tmp_path, "none", METHODS + rest)).fresh_seeds == ()
    sweep = load_sweep(write(tmp_path, "three", METHODS + rest + "confirm: {seeds: 3}\n"))
    assert sweep.fresh_seeds == tuple(fresh)
    assert {network.seed for network in dense_networks(sweep)} == {*seeds, *fresh}
    assert f"fresh seeds {', '.join(map(str, fresh))}." in describe(make_plan(sweep))


def test_settings_that_several_seeds_put_on_the_frontier_are_confirmed_once(
    tmp_path: Path,
) -> None:
    two = load_sweep(write(tmp_path, "two", METHODS + "seeds: [0, 1]\n"))
    planned = make_plan(two).plain_trials()
    again = confirmations(planned, [5, 6])
    assert [trial.trial_id for trial in again[:2]] == [
        "dense-s0-000-c5",
        "l1_filter-keep_ratio0.25-s0-000-c5",
    ]
    assert len(again) == len(planned) // 2 * 2
    assert {trial.confirms for trial in again} == {t.trial_id for t in planned if t.seed == 0}
    assert [Trial.model_validate_json(trial.model_dump_json()) for trial in again] == again


@pytest.mark.parametrize("confirm", ["{seeds: 0}", "{seeds: 1.5}", "{}", "3"])
def test_a_confirmation_that_is_none_is_refused(
    tmp_path: Path, confirm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write(tmp_path, "bad", METHODS + f"confirm: {confirm}\n")
    assert main([str(sweep), "--dry-run"]) == 2
    assert "confirm" in capsys.readouterr().err
