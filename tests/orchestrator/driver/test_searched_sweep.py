"""A sweep that searches and confirms, with Ray, Optuna and MLflow, once for all tests."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from small_sweeps import arguments, write

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.search.study_storage import open_journal

SEARCHED = """
methods:
  dense: {}
  rnp: {p: -0.15, rounds: 1, steps: 20, encoding: 4, hidden: 4}
  l1_filter: {keep_ratio: %s}
search: {trials: 2}
confirm: {seeds: 1}
"""


@dataclass(frozen=True)
class Searched:
    """A sweep on Ray that searches and confirms, and what it printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def searched(two_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("searched")
    sweep = write(folder, "searched", SEARCHED % "{uniform: [0.2, 0.9]}")
    with redirect_stdout(StringIO()) as printed:
        assert sweep_main(arguments(sweep, folder)) == 0
    return Searched(folder / "runs" / "searched", printed.getvalue())


def test_ray_gives_the_same_figures_as_one_process(
    searched: Searched, tmp_path: Path, no_report: None
) -> None:
    ratio = "l1_filter.keep_ratio"
    with_ray = read_trials(searched.folder / "trials.csv")
    shares = with_ray[ratio][with_ray["phase"] == "search"].dropna().tolist()
    grid = write(tmp_path, "plain", SEARCHED % f"{{grid: {shares}}}")
    assert trial_main(arguments(grid, tmp_path)) == 0
    measured = [
        "method", "phase", "seed", ratio, "status", "train_accuracy", "val_accuracy",
        "multiplications", "nonzero_multiplications", "parameters",
        "val_accuracy_before_finetuning", "epochs_spent", "test_accuracy",
    ]  # fmt: skip
    tables = [
        table[measured].sort_values(measured[:4], ignore_index=True)
        for table in (with_ray, read_trials(tmp_path / "runs" / "plain" / "trials.csv"))
    ]
    pd.testing.assert_frame_equal(*tables)
    of_single_images = [
        {file.name: file.read_text() for file in (folder / "images").glob("*.csv")}
        for folder in (searched.folder, tmp_path / "runs" / "plain")
    ]
    assert "rnp-s0-000.csv" in of_single_images[0]
    assert of_single_images[0] == of_single_images[1]


def test_mlflow_holds_each_trial_once_and_the_frontier(searched: Searched) -> None:
    folder = searched.folder
    rows = read_trials(folder / "trials.csv").set_index("trial_id")
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("searched")
    assert experiment is not None
    *said, report, mlflow = searched.printed.splitlines()
    assert any("of the dense network's multiplications" in line for line in said)
    assert report == f"Report: {folder / 'report.html'}"
    assert f"/#/experiments/{experiment.experiment_id}/runs?compareRunsMode=CHART" in mlflow
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {*rows.index, "frontier"}
    search = rows[rows["phase"] == "search"]
    assert len(search) == 4
    confirmed = {
        runs[trial_id].data.tags["confirms"] for trial_id in set(rows.index) - set(search.index)
    }
    assert confirmed == set(read_trials(folder / "frontier.csv")["trial_id"])
    journal = open_journal(folder / "studies.journal")
    told = optuna.load_study(study_name="l1_filter-s0", storage=journal).trials
    assert [trial.state.name for trial in told] == ["COMPLETE"] * 2
    for trial_id, row in rows.iterrows():
        assert runs[trial_id].data.metrics["val_accuracy"] == row["val_accuracy"]
    assert search["l1_filter.keep_ratio"].nunique() == 2
