"""MLflow holds what trials.csv holds: each trial once, and the report."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd
import pytest
from mlflow import MlflowClient
from tracked_sweep import (
    NO_COMPARISON,
    SWEEP,
    all_runs,
    history,
    row,
    runs,
    tracked,
    write_report_files,
)

from orchestrator.plan import Trial, make_plan
from orchestrator.run_folder.folder import sweep_id
from orchestrator.run_folder.trial_files import write_reports
from orchestrator.run_folder.trials_table import TrialsTable, table_columns
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking import experiment as experiment_module
from orchestrator.tracking.experiment import Experiment

FIRST_SWEEP = """
import sys
from pathlib import Path
from orchestrator.plan import make_plan
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.experiment import Experiment, tracking_uri
output = Path(sys.argv[1])
plan = make_plan(load_sweep(output / "sweep.yaml", ["name=first"]))
Experiment(plan, output / "sweep", tracking_uri(output))
"""


def test_making_the_database_prints_nothing_even_when_two_sweeps_do(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "sweep").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_SWEEP, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    assert [sweep.communicate()[0] for sweep in sweeps] == ["", ""]
    assert (tmp_path / "mlflow.db").exists()


def test_a_trial_is_one_flat_run_with_everything_about_it(output: Path) -> None:
    reports = [
        {"val_accuracy_before_finetuning": 0.3},
        {"epoch": 1, "val_accuracy": 0.5, "train_loss": 2.0, "timestamp": 1_795_000_000.0},
        {"epoch": 2, "val_accuracy": 0.7, "train_loss": float("nan")},
        {"round": 1, "sparsity": 0.4},
        {"round": 2, "sparsity": 0.6},
    ]
    distilled = "epochs: 5, distillation: {teacher: {depth: 8}, weight: 0.5}"
    text = SWEEP.replace("epochs: 5", distilled)
    (output / "sweep.yaml").write_text(text)
    write_reports(output / "sweep" / "reports" / "t-0.jsonl", reports)
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    (run,) = runs(output, "sweep").values()
    assert run.info.run_name == "t-0"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1_795_255_200_000
    assert run.info.end_time == run.info.start_time + 2500
    of_sections = ("data.", "backbone.", "training.", "fine_tuning.")
    assert {k: v for k, v in run.data.params.items() if not k.startswith(of_sections)} == {
        "method": "l1_filter",
        "backbone": "conv",
        "depth": "4",
        "seed": "0",
        "l1_filter.keep_ratio": "0.5",
        "l1_filter.rounds": "1",
        "l1_filter.scope": "inside_blocks",
        "l1_filter.keep": "[]",
        "l1_filter.round_to": "1",
        "l1_filter.rank_by": "writers",
    }
    assert run.data.params["data.name"] == "digits"
    assert run.data.params["backbone.depth"] == "4"
    assert run.data.params["training.epochs"] == "5"
    assert run.data.params["training.distillation.weight"] == "0.5"
    assert "fine_tuning.epochs" in run.data.params
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "status": "completed",
        "method": "l1_filter",
        "cell": "depth=4",
        "study": "l1_filter-s0",
        "phase": "search",
        "trial_id": "t-0",
        "sweep_id": sweep_id(output / "sweep"),
        "sweep": "sweep",
    }
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.metrics == {
        "val_accuracy": 0.75,
        "val_accuracy_before_finetuning": 0.3,
        "train_loss": 2.0,
        "sparsity": 0.6,
        "multiplications": 8e6,
        "parameters": 1000,
        "duration_s": 2.5,
    }
    assert history(output, run, "val_accuracy") == [(1, 0.5), (2, 0.7), (2, 0.75)]
    assert history(output, run, "train_loss") == [(1, 2.0)]
    assert history(output, run, "sparsity") == [(1, 0.4), (2, 0.6)]


def test_runs_end_as_their_trials_did(output: Path) -> None:
    with tracked(output) as tracker:
        tracker.send(row("ok-0"))
        error = "ValueError: " + 10_000 * "x"
        tracker.send(row("bad-0", status="failed", error=error, val_accuracy=None))
        tracker.send(row("cut-0", status="stopped"))
    found = runs(output, "sweep")
    assert {name: run.info.status for name, run in found.items()} == {
        "ok-0": "FINISHED",
        "bad-0": "FAILED",
        "cut-0": "KILLED",
    }
    assert found["bad-0"].data.tags["error"].startswith("ValueError: xxx")
    assert "val_accuracy" not in found["bad-0"].data.metrics


def test_more_than_fits_into_one_call_is_written_all_the_same(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [{"epoch": epoch, "val_accuracy": epoch / 2500} for epoch in range(2500)]
    write_reports(output / "sweep" / "reports" / "t-0.jsonl", reports)
    options: dict[str, Any] = {f"option_{number}": number for number in range(250)}
    trial_of_row = experiment_module.trial_of_row

    def of_many_options(*given: Any) -> Trial:
        many = {"options": options, "backbone_options": {"long": 10_000 * "x"}}
        return trial_of_row(*given).model_copy(update=many)

    monkeypatch.setattr(experiment_module, "trial_of_row", of_many_options)
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    (run,) = runs(output, "sweep").values()
    assert len(history(output, run, "val_accuracy")) == 2501
    assert {f"l1_filter.{name}" for name in options} < set(run.data.params)
    assert len(run.data.params["backbone.long"]) == 6000


def test_the_experiment_of_that_name_is_used_again_and_taken_out_of_the_bin(output: Path) -> None:
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    with tracked(output) as tracker:
        tracker.send(row("t-1"))
    assert set(runs(output, "sweep")) == {"t-0", "t-1"}
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    (run, _) = runs(output, "sweep").values()
    client.delete_experiment(run.info.experiment_id)
    with tracked(output) as tracker:
        tracker.send(row("t-2"))
    assert "t-2" in runs(output, "sweep")


def test_the_frontier_is_a_run_with_the_report_and_the_hypervolumes(output: Path) -> None:
    folder = output / "sweep"
    write_report_files(folder)
    table = TrialsTable(folder / "trials.csv", [*table_columns({}), "l1_filter.keep_ratio"])
    comparison = pd.DataFrame(
        {
            "cell": ["depth=4", "depth=8"],
            "method": ["l1_filter", "my_package.methods:Mine"],
            "tries": [10, 10],
            "hypervolume": [0.5, 0.25],
            "val_accuracy_at_25": [0.6, float("nan")],
        }
    )
    with tracked(output) as tracker:
        for trial in (row("t-0"), row("t-1")):
            table.append(trial)
            tracker.send(trial)
        table.fill({"t-0": {"test_accuracy": 0.625, "test_multiplications": 3e6}})
        tracker.finish(comparison)
    found = runs(output, "sweep")
    assert set(found) == {"t-0", "t-1", "frontier"}
    assert found["t-0"].data.metrics["test_accuracy"] == 0.625
    assert found["t-0"].data.metrics["test_multiplications"] == 3e6
    assert "test_accuracy" not in found["t-1"].data.metrics
    assert found["frontier"].data.metrics == {
        "tries/l1_filter/depth 4": 10,
        "tries/my_package.methods:Mine/depth 8": 10,
        "hypervolume/l1_filter/depth 4": 0.5,
        "hypervolume/my_package.methods:Mine/depth 8": 0.25,
        "val_accuracy_at_25/l1_filter/depth 4": 0.6,
    }
    artifacts = Path(url2pathname(urlparse(found["frontier"].info.artifact_uri).path))
    assert artifacts.is_relative_to(output / "mlflow_artifacts" / "sweep")
    assert {path.name for path in artifacts.iterdir()} == {
        "frontier.csv",
        "frontier.html",
        "report.html",
        "report.md",
        "frontier.png",
    }


def test_a_report_is_sent_again_only_if_the_sweep_has_changed(output: Path) -> None:
    folder = output / "sweep"
    write_report_files(folder)
    (folder / "trials.csv").write_text("trial_id,test_accuracy,test_multiplications\n")
    sent = []
    for change in (False, False, True):
        if change:
            (folder / "trials.csv").write_text("trial_id,test_accuracy\n")
        with tracked(output) as tracker:
            tracker.finish(NO_COMPARISON)
        (run,) = runs(output, "sweep").values()
        sent.append(run.info.run_id)
    assert all_runs(output, "sweep") == ["frontier"]
    first, second, third = sent
    assert first == second != third


def test_a_trial_that_was_sent_is_not_sent_twice_and_one_that_changed_is_replaced(
    output: Path,
) -> None:
    stopped = row("t-1", status="stopped")
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
        tracker.send(stopped)
    before = runs(output, "sweep")
    # The driver was killed before it knew that t-0 was sent; t-1 has been run again since.
    with tracked(output, row("t-0")) as tracker:
        tracker.send(row("t-1"))
        tracker.send(row("t-2"))
    after = runs(output, "sweep")
    assert all_runs(output, "sweep") == ["t-0", "t-1", "t-2"]
    assert after["t-0"].info.run_id == before["t-0"].info.run_id
    assert after["t-1"].info.status == "FINISHED"


def test_runs_that_are_cut_off_or_there_twice_are_mended(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver leaves them that is killed, or whose server answers too late."""
    rows = [row(f"t-{number}", duration_s=number) for number in range(5)]
    with tracked(output, *rows):
        pass
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    for number in (1, 3):
        run = runs(output, "sweep")[f"t-{number}"]
        again = client.create_run(
            run.info.experiment_id, run.info.start_time, run.data.tags, run_name=run.info.run_name
        )
        if number == 3:
            client.set_terminated(again.info.run_id, "FINISHED", run.info.end_time)
        else:
            client.delete_run(run.info.run_id)
    assert all_runs(output, "sweep") == ["t-0", "t-1", "t-2", "t-3", "t-3", "t-4"]
    monkeypatch.setattr(experiment_module, "RUNS_PER_CALL", 2)
    written = []
    create_run = MlflowClient.create_run

    def note(self: MlflowClient, *args: Any, **options: Any) -> Any:
        written.append(options["run_name"])
        return create_run(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "create_run", note)
    with tracked(output, *rows):
        pass
    assert all_runs(output, "sweep") == [each["trial_id"] for each in rows]
    assert {run.info.status for run in runs(output, "sweep").values()} == {"FINISHED"}
    assert runs(output, "sweep")["t-1"].data.metrics["val_accuracy"] == 0.75
    assert written == ["t-1"]


def test_rows_read_back_from_the_table_are_the_rows_that_were_sent(output: Path) -> None:
    table = TrialsTable(
        output / "sweep" / "trials.csv", [*table_columns({}), "l1_filter.keep_ratio"]
    )
    lasted = {"t-0": 0.1 + 0.2, "t-1": 1 / 3, "t-2": 12345.6789}
    with tracked(output) as tracker:
        for trial_id, duration_s in lasted.items():
            again = {"phase": "confirmation", "confirms": "t-0", "seed": 1}
            each = row(trial_id, duration_s=duration_s, **(again if trial_id == "t-2" else {}))
            table.append(each)
            tracker.send(each)
    before = {name: run.info.run_id for name, run in runs(output, "sweep").items()}
    with tracked(output, *table.read().to_dict("records")):  # type: ignore[arg-type]
        pass
    assert {name: run.info.run_id for name, run in runs(output, "sweep").items()} == before
    assert len(all_runs(output, "sweep")) == 3
    sent = runs(output, "sweep")["t-2"]
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    client.delete_run(sent.info.run_id)
    with tracked(output, *table.read().to_dict("records")):  # type: ignore[arg-type]
        pass
    resent = runs(output, "sweep")["t-2"]
    assert resent.data.params == sent.data.params
    assert resent.data.metrics == sent.data.metrics
    assert resent.info.end_time == sent.info.end_time


def test_sweeps_of_one_name_are_told_apart(output: Path) -> None:
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    (output / "sweep").rename(output / "aside")
    (output / "sweep").mkdir()
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    assert all_runs(output, "sweep") == ["t-0", "t-0"]


def test_a_database_is_made_in_memory_and_every_one_waits_for_its_disk(tmp_path: Path) -> None:
    import sqlalchemy
    from sqlalchemy.engine import Engine

    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "sweep").mkdir()
    plan = make_plan(load_sweep(tmp_path / "sweep.yaml"))
    modes: dict[Path, set[int]] = {}

    def look(connection: Any, *_: Any) -> None:
        path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        mode = connection.execute("PRAGMA synchronous").fetchone()[0]
        modes.setdefault(path, set()).add(mode)

    sqlalchemy.event.listen(Engine, "checkout", look)
    try:
        Experiment(plan, tmp_path / "sweep", f"sqlite:///{tmp_path / 'mlflow.db'}")
    finally:
        sqlalchemy.event.remove(Engine, "checkout", look)
    waits_for_the_disk = 2  # SQLite's own default, FULL
    assert set().union(*modes.values()) == {waits_for_the_disk}
    (made,) = modes.keys() - {tmp_path / "mlflow.db"}
    assert not made.exists()
    if Path("/dev/shm").exists():
        assert made.is_relative_to("/dev/shm")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".mlflow.lock", "mlflow.db", "sweep", "sweep.yaml",
    }  # fmt: skip
