"""MLflow holds what trials.csv holds, and its failures cost no trial."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd
import pytest

from orchestrator.run_folder.folder import sweep_id
from orchestrator.run_folder.outbox import Outbox
from orchestrator.run_folder.trials_table import TrialsTable, table_columns
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.experiment import Experiment
from orchestrator.tracking.tracker import Tracker

# What MLflow 3.17 does with SQLAlchemy 2.1; pytest makes warnings errors, a user never sees it.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

FIRST_SWEEP = """
import sys
from pathlib import Path
from orchestrator.tracking.tracker import Tracker
with Tracker("first", Path(sys.argv[1]), print) as tracker:
    tracker.close(patience_s=500)  # the tables take seconds, and more on a machine at work
"""


@pytest.fixture(scope="module")
def first_sweeps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A new database, made by two sweeps that start together, and what each of them printed."""
    output = tmp_path_factory.mktemp("runs")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_SWEEP, str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    return output, [sweep.communicate()[0] for sweep in sweeps]


@pytest.fixture
def output(
    first_sweeps: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder for runs, with an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(first_sweeps[0] / "mlflow.db", tmp_path)
    (tmp_path / "sweep").mkdir()
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.05)
    return tmp_path


@contextmanager
def tracked(output: Path, sweep: str = "sweep", goes_on: bool = False) -> Iterator[Tracker]:
    """A tracker that must have nothing to complain of."""
    said: list[str] = []
    with Tracker(sweep, output, said.append, goes_on) as tracker:
        yield tracker
        Outbox(output / sweep).report_is_due = False  # these tests finish no sweep, but one
    assert said == []
    assert tracker.where is not None


def all_runs(output: Path, sweep: str) -> list[str]:
    """The names of all runs, but for those in the bin."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))


def done(
    tracker: Tracker, row: dict[str, Any], reports: list[dict[str, float]], settings: dict[str, Any]
) -> None:
    """A trial has ended."""
    tracker.keep(row, reports, settings)
    tracker.send(row["trial_id"])


def runs(output: Path, sweep: str) -> dict[str, Any]:
    """Run name -> MLflow's run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    assert experiment.lifecycle_stage == "active"
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def history(output: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    """(step, value) of all that was logged under a metric's name, in order."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    logged = client.get_metric_history(run.info.run_id, metric)
    return [(entry.step, entry.value) for entry in logged]


def row(trial_id: str, **columns: Any) -> dict[str, Any]:
    usual = {
        "trial_id": trial_id,
        "phase": "search",
        "method": "l1_filter",
        "backbone": "conv",
        "depth": 4,
        "seed": 0,
        "status": "completed",
        "val_accuracy": 0.75,
        "multiplications": 8e6,
        "parameters": 1000,
        "duration_s": 2.5,
        "error": None,
        "cell": "depth=4",
        "started_at": "2026-11-21T10:00:00.000+00:00",
        "l1_filter.keep_ratio": 0.5,
    }
    return {**usual, **columns}


def test_making_the_database_prints_nothing_even_when_two_sweeps_do(
    first_sweeps: tuple[Path, list[str]],
) -> None:
    output, printed = first_sweeps
    assert (output / "mlflow.db").exists()
    assert printed == ["", ""]


def test_a_trial_is_one_flat_run_with_everything_about_it(output: Path) -> None:
    reports = [
        {"val_accuracy_before_finetuning": 0.3},
        {"epoch": 1, "val_accuracy": 0.5, "train_loss": 2.0, "timestamp": 1_795_000_000.0},
        {"epoch": 2, "val_accuracy": 0.7, "train_loss": float("nan")},
        {"round": 1, "sparsity": 0.4},
        {"round": 2, "sparsity": 0.6},
    ]
    settings = {"training": {"epochs": 5, "distillation": {"weight": 0.5}}, "data": {}}
    with tracked(output) as tracker:
        done(tracker, row("t0"), reports, settings)
    (run,) = runs(output, "sweep").values()
    assert run.info.run_name == "t0"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1_795_255_200_000
    assert run.info.end_time == run.info.start_time + 2500
    assert run.data.params == {
        "method": "l1_filter",
        "backbone": "conv",
        "depth": "4",
        "seed": "0",
        "l1_filter.keep_ratio": "0.5",
        "training.epochs": "5",
        "training.distillation.weight": "0.5",
    }
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "status": "completed",
        "method": "l1_filter",
        "cell": "depth=4",
        "phase": "search",
        "trial_id": "t0",
        "sweep_id": sweep_id(output / "sweep"),
        "digest": tags["digest"],
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
        done(tracker, row("ok"), [], {})
        error = "ValueError: " + 10_000 * "x"
        done(tracker, row("bad", status="failed", error=error, val_accuracy=None), [], {})
        done(tracker, row("cut", status="stopped"), [], {})
    found = runs(output, "sweep")
    assert {name: run.info.status for name, run in found.items()} == {
        "ok": "FINISHED",
        "bad": "FAILED",
        "cut": "KILLED",
    }
    assert found["bad"].data.tags["error"].startswith("ValueError: xxx")
    assert "val_accuracy" not in found["bad"].data.metrics


def test_more_than_fits_into_one_call_is_written_all_the_same(output: Path) -> None:
    reports = [{"epoch": epoch, "val_accuracy": epoch / 2500} for epoch in range(2500)]
    options = {f"l1_filter.option_{number}": number for number in range(250)}
    with tracked(output) as tracker:
        done(tracker, row("t0", **options), reports, {"long": 10_000 * "x"})
    (run,) = runs(output, "sweep").values()
    assert len(history(output, run, "val_accuracy")) == 2501
    assert set(options) < set(run.data.params)
    assert len(run.data.params["long"]) == 6000


def test_the_experiment_of_that_name_is_used_again_and_taken_out_of_the_bin(output: Path) -> None:
    from mlflow import MlflowClient

    with tracked(output) as tracker:
        done(tracker, row("t0"), [], {})
    with tracked(output) as tracker:
        done(tracker, row("t1"), [], {})
    assert set(runs(output, "sweep")) == {"t0", "t1"}
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    (run, _) = runs(output, "sweep").values()
    client.delete_experiment(run.info.experiment_id)
    with tracked(output) as tracker:
        done(tracker, row("t2"), [], {})
    assert "t2" in runs(output, "sweep")


def test_the_frontier_is_a_run_with_the_report_and_the_hypervolumes(output: Path) -> None:
    folder = output / "sweep"
    for name in ("frontier.csv", "frontier.html", "frontier.png", "report.html", "report.md"):
        (folder / name).write_text(name)
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
        for trial in (row("t0"), row("t1")):
            table.append(trial)
            done(tracker, trial, [], {})
        table.fill({"t0": {"test_accuracy": 0.625, "test_multiplications": 3e6}})
        tracker.finish(comparison)
    found = runs(output, "sweep")
    assert set(found) == {"t0", "t1", "frontier"}
    assert found["t0"].data.metrics["test_accuracy"] == 0.625
    assert found["t0"].data.metrics["test_multiplications"] == 3e6
    assert "test_accuracy" not in found["t1"].data.metrics
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


def test_a_database_that_cannot_be_opened_is_said_once_and_its_runs_are_kept(output: Path) -> None:
    good = (output / "mlflow.db").read_bytes()
    (output / "mlflow.db").write_text("this is no database" * 100)
    said: list[str] = []
    with Tracker("sweep", output, said.append) as tracker:
        for number in range(5):
            done(tracker, row(f"t{number}"), [{"epoch": 1, "val_accuracy": 0.5}], {})
    first, last = said
    assert "MLflow at sqlite:///" in first
    assert "The trials go on" in first
    assert "\n" not in first
    assert "lacks 6 of this sweep's runs" in last  # the report among them

    (output / "mlflow.db").write_bytes(good)
    with tracked(output):  # which is what the same command does
        pass
    found = runs(output, "sweep")
    assert set(found) == {f"t{number}" for number in range(5)}
    assert history(output, found["t3"], "val_accuracy") == [(1, 0.5), (1, 0.75)]
    assert Outbox(output / "sweep").trials() == []


def test_what_mlflow_refuses_for_a_while_is_sent_when_it_is_back(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    away = 7  # calls
    end = MlflowClient.set_terminated

    def fail_at_first(self: MlflowClient, *args: Any, **options: Any) -> Any:
        nonlocal away
        away -= 1
        if away >= 0:  # the run is there by then, but for its end
            raise ConnectionError("the server is away")
        return end(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "set_terminated", fail_at_first)
    said: list[str] = []
    with Tracker("sweep", output, said.append) as tracker:
        for number in range(3):
            done(tracker, row(f"t{number}"), [], {})
        give_up = time.monotonic() + 60
        while Outbox(output / "sweep").trials() and time.monotonic() < give_up:
            time.sleep(0.05)
    assert all_runs(output, "sweep") == ["t0", "t1", "t2"]
    assert {run.info.status for run in runs(output, "sweep").values()} == {"FINISHED"}
    assert len(said) == 2  # that it was away, and that it lacks the report, which nobody finished


def test_a_run_that_mlflow_never_takes_stops_no_other(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create_run = MlflowClient.create_run

    def fail_for_t1(self: MlflowClient, *args: Any, **options: Any) -> Any:
        if options["run_name"] == "t1":
            raise ValueError("a param is too odd")
        return create_run(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "create_run", fail_for_t1)
    said: list[str] = []
    with Tracker("sweep", output, said.append) as tracker:
        for number in range(3):
            done(tracker, row(f"t{number}"), [], {})
    assert set(runs(output, "sweep")) == {"t0", "t2"}
    assert "ValueError: a param is too odd" in said[0]
    assert Outbox(output / "sweep").trials() == ["t1"]


def test_a_trial_that_was_sent_is_not_sent_twice_and_one_that_changed_is_replaced(
    output: Path,
) -> None:
    stopped = row("t1", status="stopped")
    with tracked(output) as tracker:
        done(tracker, row("t0"), [], {})
        done(tracker, stopped, [], {})
    before = runs(output, "sweep")
    with tracked(output, goes_on=True) as tracker:
        done(tracker, row("t0"), [], {})  # the driver was killed before it noted that it was sent
        done(tracker, row("t1"), [], {})
        done(tracker, row("t2"), [], {})
    after = runs(output, "sweep")
    assert all_runs(output, "sweep") == ["t0", "t1", "t2"]
    assert after["t0"].info.run_id == before["t0"].info.run_id
    assert after["t1"].info.status == "FINISHED"


def test_sweeps_of_one_name_are_told_apart(output: Path) -> None:
    with tracked(output) as tracker:
        done(tracker, row("t0"), [], {})
    (output / "sweep").rename(output / "aside")
    (output / "sweep").mkdir()
    with tracked(output, goes_on=True) as tracker:
        done(tracker, row("t0"), [], {})
    assert all_runs(output, "sweep") == ["t0", "t0"]


def test_the_tracking_uri_of_the_environment_is_used(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(output / "mlflow.db", elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'mlflow.db'}")
    with tracked(output) as tracker:
        done(tracker, row("t0"), [], {})
    assert set(runs(elsewhere, "sweep")) == {"t0"}
    assert tracker.where is not None
    assert f"--backend-store-uri sqlite:///{elsewhere / 'mlflow.db'}, then" in tracker.where
    assert not (output / "mlflow.db").exists()


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    answer = threading.Event()
    monkeypatch.setattr(MlflowClient, "create_run", lambda *_, **__: answer.wait())
    said: list[str] = []
    tracker = Tracker("sweep", output, said.append)
    done(tracker, row("t0"), [], {})
    tracker.close(patience_s=2)
    assert "took no run within 2 s; giving up" in said[0]
    assert tracker.where is None
    answer.set()
    tracker.close()


def test_a_local_database_may_take_longer_than_a_server(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create_run = MlflowClient.create_run

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1)
        return create_run(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.1)
    with tracked(output) as tracker:
        done(tracker, row("t0"), [], {})
    assert set(runs(output, "sweep")) == {"t0"}


def test_only_the_database_that_is_being_made_is_written_without_waiting_for_the_disk(
    tmp_path: Path,
) -> None:
    import sqlalchemy
    from sqlalchemy.engine import Engine

    modes: dict[str, set[int]] = {}

    def look(connection: Any, *_: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            name = Path(connection.execute("PRAGMA database_list").fetchone()[2]).name
            modes.setdefault(name, set()).add(
                connection.execute("PRAGMA synchronous").fetchone()[0]
            )

    def another_and_look(connection: Any, *_: Any) -> None:
        look(connection)
        if len(modes) == 1:  # while MLflow's tables are made, another database is opened
            with sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.db'}").connect():
                pass

    sqlalchemy.event.listen(Engine, "checkout", another_and_look)
    try:
        Experiment("sweep", f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, goes_on=False)
    finally:
        sqlalchemy.event.remove(Engine, "checkout", another_and_look)
    waits_for_the_disk = 2  # SQLite's own default, FULL
    assert modes == {
        ".mlflow.db.new": {0},
        "other.db": {waits_for_the_disk},
        "mlflow.db": {waits_for_the_disk},
    }
