"""MLflow's failures cost no trial, and what it lacks is sent when it is back."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tracked_sweep import NO_COMPARISON, all_runs, history, row, runs, started, tracked

from orchestrator.run_folder.trial_files import write_reports
from orchestrator.tracking import tracker as tracking


def test_a_database_that_cannot_be_opened_is_said_once_and_its_runs_are_kept(output: Path) -> None:
    good = (output / "mlflow.db").read_bytes()
    (output / "mlflow.db").write_text("this is no database" * 100)
    said: list[str] = []
    rows = [row(f"t-{number}") for number in range(5)]
    write_reports(output / "sweep" / "reports" / "t-3.jsonl", [{"epoch": 1, "val_accuracy": 0.5}])
    with started(output, said.append) as tracker:
        for each in rows:
            tracker.send(each)
        tracker.finish(NO_COMPARISON)
    first, last = said
    assert "MLflow at sqlite:///" in first
    assert "The trials go on" in first
    assert "\n" not in first
    assert "lacks 6 of this sweep's runs" in last  # the report among them

    with started(output, said.append, rows):
        pass
    assert "may lack 5 of this sweep's runs" in said[-1]  # which nobody could ask

    (output / "mlflow.db").write_bytes(good)
    with tracked(output, *rows):  # which is what the same command does
        pass
    found = runs(output, "sweep")
    assert set(found) == {f"t-{number}" for number in range(5)}
    assert history(output, found["t-3"], "val_accuracy") == [(1, 0.5), (1, 0.75)]


def test_what_mlflow_refuses_for_a_while_is_sent_when_it_is_back(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with started(output, said.append) as tracker:
        for number in range(3):
            tracker.send(row(f"t-{number}"))
        give_up = time.monotonic() + 60
        while tracker.where is None and time.monotonic() < give_up:
            time.sleep(0.05)
    assert all_runs(output, "sweep") == ["t-0", "t-1", "t-2"]
    assert {run.info.status for run in runs(output, "sweep").values()} == {"FINISHED"}
    assert len(said) == 1  # that it was away


def test_a_run_that_mlflow_never_takes_stops_no_other(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run = MlflowClient.create_run

    def fail_for_t1(self: MlflowClient, *args: Any, **options: Any) -> Any:
        if options["run_name"] == "t-1":
            raise ValueError("a param is too odd")
        return create_run(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "create_run", fail_for_t1)
    said: list[str] = []
    with started(output, said.append) as tracker:
        for number in range(3):
            tracker.send(row(f"t-{number}"))
    assert set(runs(output, "sweep")) == {"t-0", "t-2"}
    assert "ValueError: a param is too odd" in said[0]
    assert "lacks 1 of this sweep's runs; the same command sends them" in said[1]


def test_the_tracking_uri_of_the_environment_is_used(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(output / "mlflow.db", elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'mlflow.db'}")
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    assert set(runs(elsewhere, "sweep")) == {"t-0"}
    assert tracker.where is not None
    assert f"--backend-store-uri sqlite:///{elsewhere / 'mlflow.db'}, then" in tracker.where
    assert not (output / "mlflow.db").exists()


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(MlflowClient, "create_run", lambda *_, **__: answer.wait())
    said: list[str] = []
    tracker = started(output, said.append)
    tracker.send(row("t-0"))
    tracker.close(patience_s=2)
    assert "took no run within 2 s; giving up" in said[0]
    assert tracker.where is None
    answer.set()
    tracker.close()


def test_a_local_database_may_take_longer_than_a_server(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run = MlflowClient.create_run

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1)
        return create_run(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.1)
    with tracked(output) as tracker:
        tracker.send(row("t-0"))
    assert set(runs(output, "sweep")) == {"t-0"}
