"""Whole sweeps, small: with Ray, Optuna and MLflow, and without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from small_sweeps import METHODS, ONE_WORKER, SMALL, arguments, write

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.driver import driver
from orchestrator.jobs import final_test as final_evaluation
from orchestrator.plan import make_plan
from orchestrator.plan.jobs import INTERRUPTED
from orchestrator.run_folder import recorder
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker
from testbed.data import DataOptions, Images, load_test_images

PROJECT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("two_workers")
LEFT_BEHIND = {
    "sweep.yaml", "trials.csv", "frontier.csv", "multiplications_per_class.csv",
    "report.html", "report.md", "frontier.png", "frontier.html", "reports",
    "test_multiplications_per_class.csv",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of METHODS in one process."""
    folder = tmp_path_factory.mktemp("plain")
    assert trial_main(arguments(write(folder, "small", METHODS), folder)) == 0
    return folder / "runs" / "small"


def test_a_sweep_leaves_all_its_files_behind(plain: Path) -> None:
    assert {path.name for path in plain.iterdir()} >= LEFT_BEHIND
    assert not (plain / "images").exists()  # no method here decides per image


def test_only_trials_on_the_frontier_meet_the_test_images(plain: Path) -> None:
    rows = read_trials(plain / "trials.csv").set_index("trial_id")
    on_frontier = read_trials(plain / "frontier.csv")["trial_id"]
    assert set(rows.index[rows["test_accuracy"].notna()]) == set(on_frontier)


def test_networks_that_decide_nothing_cost_on_test_images_what_they_cost_on_others(
    plain: Path,
) -> None:
    rows = read_trials(plain / "trials.csv").dropna(subset=["test_multiplications"])
    assert not rows.empty
    assert list(rows["test_multiplications"]) == list(rows["multiplications"])


def test_classes_weighted_by_their_images_cost_what_the_row_says(plain: Path) -> None:
    rows = read_trials(plain / "trials.csv").set_index("trial_id")
    layers = pd.read_csv(plain / "multiplications_per_class.csv")
    totals = layers.groupby(["trial_id", "class"])["multiplications"].sum()
    for trial_id, row in rows.iterrows():  # no method here decides per image: all cost the same
        assert totals[trial_id].unique() == pytest.approx(row["multiplications"])
        in_the_row = json.loads(row["multiplications_per_class"])
        assert in_the_row == pytest.approx(totals[trial_id].rename(str).to_dict())


DECIDING = """
methods:
  static_prefix: {keep_multiplications: 0.5}
  rnp: {p: -0.15, rounds: 1, steps: 20, encoding: 4, hidden: 4}
"""


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a sweep in which one network decides per image."""
    folder = tmp_path_factory.mktemp("deciding")
    assert trial_main(arguments(write(folder, "deciding", DECIDING), folder)) == 0
    return folder / "runs" / "deciding"


def test_a_row_says_by_how_much_its_budget_was_missed(deciding: Path) -> None:
    rows = read_trials(deciding / "trials.csv").set_index("method")
    prefix = rows.loc["static_prefix"]
    off = prefix["multiplications"] / (0.5 * prefix["dense_multiplications"]) - 1
    assert abs(off) > 0.01, "its few groups meet no such share"
    assert prefix["budget_missed"] == pytest.approx(off)
    assert pd.isna(rows.loc["rnp", "budget_missed"])


def test_single_images_are_kept_of_networks_that_decide_per_image(deciding: Path) -> None:
    rows = read_trials(deciding / "trials.csv").set_index("method")
    assert list(rows["status"]) == ["completed"] * 2
    (file,) = (deciding / "images").glob("*.csv")
    assert file.stem == rows.loc["rnp", "trial_id"]
    images = pd.read_csv(file)
    assert len(images) == rows.loc["rnp", "validation_images"]
    assert images["multiplications"].mean() == pytest.approx(rows.loc["rnp", "multiplications"])
    assert images["correct"].mean() == pytest.approx(rows.loc["rnp", "val_accuracy"])
    means = images.groupby(images["class"].astype(str))["multiplications"].mean()
    in_the_row = json.loads(rows.loc["rnp", "multiplications_per_class"])
    assert in_the_row == pytest.approx(means.to_dict())


def test_passes_beside_the_budget_are_in_the_row(deciding: Path) -> None:
    rows = read_trials(deciding / "trials.csv").set_index("method")
    assert rows.loc["rnp", "q_learning_epochs"] > 0
    assert rows.loc["static_prefix", "q_learning_epochs"] == 0
    assert list(rows["reward_epochs"]) == [0, 0]


def test_a_network_that_decides_per_image_meets_the_test_images_from_its_file(
    deciding: Path,
) -> None:
    rows = read_trials(deciding / "trials.csv").set_index("trial_id")
    costs = pd.read_csv(deciding / "test_multiplications_per_class.csv")
    totals = costs.groupby(["trial_id", "class"])["multiplications"].sum()
    counts = pd.Series(load_test_images(DataOptions(name="digits"), Path()).labels).value_counts()
    for trial_id, row in rows[rows["test_accuracy"].notna()].iterrows():
        mean = (totals[trial_id] * counts).sum() / counts.sum()
        assert row["test_multiplications"] == pytest.approx(mean)
    text = (deciding / "report.md").read_text()
    assert ("What single images cost" in text) == any("rnp" in t for t in totals.index.levels[0])


def test_mlflow_holds_what_each_round_reported(deciding: Path) -> None:
    rows, said = read_trials(deciding / "trials.csv").set_index("method"), list[str]()
    plan = make_plan(load_sweep(deciding / "sweep.yaml"))
    with Tracker(plan, deciding, said.append, rows.reset_index().to_dict("records")):
        pass
    assert said == []
    client = MlflowClient(f"sqlite:///{deciding.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("deciding")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    metrics = runs[rows.loc["rnp", "trial_id"]].data.metrics
    convs = ["conv2", "conv3", "conv4"]
    for name in ("alpha", "penalty_in_cross_entropy", *(f"mean_action.{conv}" for conv in convs)):
        assert name in metrics, name
    prefixes = runs[rows.loc["static_prefix", "trial_id"]].data.metrics
    assert all(prefixes[f"mean_action.{conv}"] in (1, 2, 3, 4) for conv in convs)


FAILING = """
methods:
  dense: {}
  tests.tiny_methods:Raises: {}
"""


def test_a_failed_trial_is_a_row_and_exit_status_1(tmp_path: Path) -> None:
    assert trial_main(arguments(write(tmp_path, "failing", FAILING), tmp_path)) == 1
    rows = read_trials(tmp_path / "runs" / "failing" / "trials.csv").set_index("method")
    assert rows.loc["dense", "status"] == "completed"
    failed = rows.loc["tests.tiny_methods:Raises"]
    assert failed["status"] == "failed"
    assert failed["error"].startswith("RuntimeError: as it was asked to")
    assert "as it was asked to" in (tmp_path / "runs" / "failing" / "report.md").read_text()


@pytest.mark.usefixtures("no_report")
def test_only_one_method_is_run_if_asked(tmp_path: Path) -> None:
    searched = "methods: {dense: {}, l1_filter: {keep_ratio: {uniform: [0.2, 0.9]}}}\n"
    sweep = write(tmp_path, "one", searched)
    assert trial_main([*arguments(sweep, tmp_path), "--only", "dense"]) == 0
    assert list(read_trials(tmp_path / "runs" / "one" / "trials.csv")["method"]) == ["dense"]


def test_only_an_unknown_method_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write(tmp_path, "one", METHODS)
    assert trial_main([*arguments(sweep, tmp_path), "--only", "dens", "--dry-run"]) == 2
    assert "Did you mean 'dense'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("backbone: {name: 'tests.tiny_methods:raises'}", "raised RuntimeError: as it was asked"),
        ("data: {name: 'tests.tiny_methods:raises'}", "raised RuntimeError: as it was asked"),
        ("backbone: {name: vgg16}", "8"),  # too small an image for it
    ],
)
def test_what_cannot_be_built_is_bad_input(
    section: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = section.partition(":")[0]
    lines = [line for line in SMALL.splitlines() if not line.startswith(name)]
    path = tmp_path / "bad.yaml"
    path.write_text("\n".join([*lines, section, "methods: {dense: {}}"]))
    assert trial_main(arguments(path, tmp_path)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "bad").exists()


BEYOND_REACH = """
methods:
  dense: {}
  l1_filter: {keep_multiplications: 0.001}
  static_prefix: {keep_multiplications: {grid: [0.01, 0.9]}}
  policy_gradient: {layers: one, layer: conv9}
"""


def test_all_that_methods_cannot_do_with_a_network_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond = write(tmp_path, "beyond", BEYOND_REACH)
    for main in (trial_main, sweep_main):
        assert main(arguments(beyond, tmp_path)) == 2
        said = capsys.readouterr().err
        assert "l1_filter-s0: keep_multiplications 0.001 cannot be reached" in said
        assert "static_prefix-keep_multiplications0.01-s0: keep_multiplications 0.01 cannot" in said
        assert "policy_gradient-s0: unknown prunable layer 'conv9'" in said
        assert "keep_multiplications0.9" not in said
        assert not (tmp_path / "runs" / "beyond").exists()


@pytest.mark.parametrize("main", [trial_main, sweep_main])
def test_a_sweep_that_has_begun_is_resumed_whatever_methods_refuse(
    main: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = "methods: {dense: {}, 'tests.tiny_methods:Refuses': {}}\n"
    command = arguments(write(tmp_path, "old", methods + ONE_WORKER), tmp_path)
    assert main(command) == 2
    with monkeypatch.context() as unchecked:
        unchecked.setattr(driver, "check_methods", lambda *_: None)
        assert trial_main(command) == 1
    assert main([*command, "--retry-failed", "--set", "methods.vanilla={}"]) == 1
    rows = read_trials(tmp_path / "runs" / "old" / "trials.csv").set_index("method")["status"]
    assert rows.to_dict() == {
        "dense": "completed",
        "tests.tiny_methods:Refuses": "failed",
        "vanilla": "completed",
    }


TRAINED = f"""
{ONE_WORKER}fine_tuning: {{epochs: 1, learning_rate: {{uniform: [0.01, 0.1]}}}}
backbone: {{name: conv, depth: 4, width: 0.25, dropout: DROPOUT}}
methods: {{l1_filter: {{keep_multiplications: 0.001}}}}
search: {{trials: 1}}
"""


def test_methods_look_at_networks_where_only_the_training_is_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [line for line in SMALL.splitlines() if line.startswith(("data", "training"))]
    path = tmp_path / "searched.yaml"
    path.write_text("\n".join([*kept, TRAINED.replace("DROPOUT", "{grid: [0.0, 0.1]}")]))
    assert sweep_main(arguments(path, tmp_path)) == 2
    assert capsys.readouterr().err.count("0.001 cannot be reached") == 2
    path.write_text("\n".join([*kept, TRAINED.replace("DROPOUT", "{uniform: [0.0, 0.1]}")]))
    assert sweep_main(arguments(path, tmp_path)) == 1, "left to the trial"


@pytest.mark.usefixtures("no_report")
def test_a_network_that_methods_cannot_look_at_fails_in_its_trials(tmp_path: Path) -> None:
    sweep = write(tmp_path, "own", "methods: {dense: {}, static_prefix: {}}")
    own = ["--set", "backbone={name: 'tests.tiny_methods:fails_on_images'}"]
    assert trial_main([*arguments(sweep, tmp_path), *own]) == 1
    rows = read_trials(tmp_path / "runs" / "own" / "trials.csv")
    assert list(rows["status"]) == ["failed"] * 2


def test_an_output_that_cannot_be_made_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    sweep = write(tmp_path, "small", METHODS)
    assert trial_main([str(sweep), "--output", str(tmp_path / "file" / "runs")]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.usefixtures("no_report")
def test_a_full_disk_is_not_blamed_on_the_trial_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    sweep = write(tmp_path, "full", "methods: {dense: {}}")
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "append_multiplications_per_class", full)
        assert trial_main(arguments(sweep, tmp_path)) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert f"Resume with: python -m orchestrator.trial {sweep} --output" in said
    assert read_trials(tmp_path / "runs" / "full" / "trials.csv").empty
    assert trial_main(arguments(sweep, tmp_path)) == 0
    rows = read_trials(tmp_path / "runs" / "full" / "trials.csv")
    assert list(rows["status"]) == ["completed"]


def test_a_trial_lost_before_it_started_is_a_row(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(write(tmp_path, "lost", "methods: {dense: {}}")))
    kept = recorder.Recorder(plan, tmp_path / "run", tmp_path)
    kept.ended(plan.plain_trials()[0], INTERRUPTED)
    assert list(read_trials(tmp_path / "run" / "trials.csv")["status"]) == ["stopped"]


@pytest.mark.usefixtures("no_report")
def test_the_test_images_are_read_after_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_by_then = []
    load = final_evaluation.load_test_images

    def note(*arguments: Any) -> Images:
        table = read_trials(tmp_path / "runs" / "late" / "trials.csv")
        rows_by_then.append(list(table["test_accuracy"].isna()))
        return load(*arguments)

    monkeypatch.setattr(final_evaluation, "load_test_images", note)
    final_evaluation._test_images.cache_clear()
    methods = "methods: {dense: {}, l1_filter: {keep_ratio: 0.5}}"
    assert trial_main(arguments(write(tmp_path, "late", methods), tmp_path)) == 0
    assert rows_by_then == [[True, True]]


def test_ranges_need_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = "methods: {l1_filter: {keep_ratio: {uniform: [0.2, 0.9]}}}\n"
    assert trial_main(arguments(write(tmp_path, "ranges", ranges), tmp_path)) == 2
    assert "methods.l1_filter.keep_ratio" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "ranges").exists()
