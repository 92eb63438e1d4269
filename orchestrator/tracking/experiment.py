"""How a sweep looks in MLflow: one experiment, one flat run a trial, and a run of the report.

Every run has the tags `trial_id` and `sweep_id`, by which it is found again: what was sent before
and is whole is not sent twice, what was cut off or has changed since is replaced.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.palette import LIGHT, method_marks
from orchestrator.run_folder.folder import REPORT
from orchestrator.run_folder.outbox import Letter
from orchestrator.run_folder.trials_table import COLUMNS, read_trials
from orchestrator.tracking.view import RUN_COLOUR, TAG, view_to_write

if TYPE_CHECKING:  # importing MLflow takes seconds, which only the tracker's thread spends
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARAMS = (
    "method",
    "dataset",
    "classes",
    "validation_images",
    "backbone",
    "depth",
    "dropout",
    "seed",
    "fine_tuning_epochs",
    "threads",
)
TAGS = (
    "status",
    "error",
    "method",
    "cell",
    "study",
    "phase",
    "confirms",
    "device",
    "torch_version",
    "code_version",
)
METRICS = tuple(name for name in COLUMNS if name not in (*PARAMS, *TAGS, "trial_id", "started_at"))
TESTED = ("test_accuracy", "test_multiplications")
STATUS = {
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}

# MLflow takes 1000 things in one call, 100 of them params, and so many characters of each.
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 6000, 5000, 250

SQLITE = "sqlite:///"
# The tracker tries again itself. A request that MLflow's own client repeats may be done twice.
HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def tracking_uri(output: Path) -> str:
    """Where the runs of a folder of sweeps go: MLFLOW_TRACKING_URI, or else `OUTPUT/mlflow.db`."""
    local = f"{SQLITE}{output.resolve() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or local


def open_client(uri: str) -> MlflowClient:
    """MLflow's client, that calls nobody else and leaves trying again to us."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for setting, value in HTTP.items():
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Sweeps that start together would make the database's tables twice, which MLflow fails on."""
    with (folder / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def _make_database(uri: str) -> None:
    """Makes the file of a local database, if there is none, whole or not at all.

    MLflow takes some seconds for its tables; a half-made one of a killed driver it never mends.
    """
    path = Path(uri.removeprefix(SQLITE)).resolve()  # as SQLite names it
    if not uri.startswith(SQLITE) or path.exists():
        return
    unfinished = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{unfinished.name}*"):
        leftover.unlink()
    with _without_waiting_for_the_disk(unfinished):
        open_client(f"{SQLITE}{unfinished}").search_experiments()
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


@contextmanager
def _without_waiting_for_the_disk(database: Path) -> Iterator[None]:
    """SQLite leaves writing this file to the system, as a cut-off one is made anew anyhow.

    MLflow commits some hundred times for its tables: half of the time on a fast disk.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            files = [file for _, _, file in connection.execute("PRAGMA database_list")]
            if str(database) in files:
                connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)


class Experiment:
    """One experiment of MLflow. Its methods raise whatever MLflow raises."""

    def __init__(
        self, name: str, uri: str, output: Path, goes_on: bool, methods: Sequence[str] = ()
    ) -> None:
        """Finds the experiment, takes it out of the bin, or makes it and its database.

        Args:
            output: the folder of all sweeps.
            goes_on: whether there may be runs of the sweep already.
            methods: the sweep's, in its order, whose runs get the colours of the report.
        """
        self._goes_on = goes_on
        self._runs: dict[str, str] = {}  # trial_id -> MLflow's id, of those written here
        self._colours = {method: mark[0] for method, mark in method_marks(methods, LIGHT).items()}
        with _one_process_at_a_time(output):
            _make_database(uri)
            self.client = open_client(uri)
            found = self.client.get_experiment_by_name(name)
            if found is None:
                artifacts = output / "mlflow_artifacts" / name
                # A server decides itself where artifacts go.
                location = artifacts.as_uri() if uri.startswith(SQLITE) else None
                self.id = self.client.create_experiment(name, artifact_location=location)
                return
        self.id = found.experiment_id
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(self.id)

    def write_view(self) -> None:
        """The view "Frontier" of the experiment, unless it is there."""
        tag = view_to_write(self.client.get_experiment(self.id).tags.get(TAG))
        if tag is not None:
            self.client.set_experiment_tag(self.id, TAG, tag)

    def write_trial(self, sweep_id: str, letter: Letter, first: bool) -> None:
        """One flat run: three calls, unless the trial reported more than 900 figures.

        Args:
            first: whether it has not been tried before; else its run may be there already.
        """
        from mlflow.entities import Metric, Param

        row, trial_id = letter.row, letter.row["trial_id"]
        if (self._goes_on or not first) and self._is_there(sweep_id, trial_id, letter.digest):
            return
        start, end = _times(row)
        tags = {name: str(row[name])[:LONGEST_TAG] for name in TAGS if _given(row.get(name))}
        tags |= {"sweep_id": sweep_id, "trial_id": trial_id, "digest": letter.digest}
        if row["method"] in self._colours:
            tags[RUN_COLOUR] = self._colours[row["method"]]
        metrics = [
            Metric(_key(name), value, timestamp or end, step)
            for name, value, timestamp, step in _figures(row, letter.reports)
        ]
        params = [
            Param(_key(name), str(value)[:LONGEST_PARAM])
            for name, value in _settings(row, letter.settings).items()
        ]
        run = self.client.create_run(self.id, start, tags, run_name=trial_id).info.run_id
        calls = max(len(metrics) / METRICS_PER_CALL, len(params) / PARAMS_PER_CALL)
        for call in range(math.ceil(calls)):
            some_metrics = metrics[call * METRICS_PER_CALL : (call + 1) * METRICS_PER_CALL]
            some_params = params[call * PARAMS_PER_CALL : (call + 1) * PARAMS_PER_CALL]
            self.client.log_batch(run, some_metrics, some_params)
        self.client.set_terminated(run, STATUS[row["status"]], end)
        self._runs[trial_id] = run

    def write_frontier(
        self, sweep_id: str, started: float, folder: Path, comparison: pd.DataFrame
    ) -> None:
        """The run `frontier`, in place of an earlier one; and the tests' figures, which came after
        their runs had ended."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        figures = comparison.melt(["cell", "method"], var_name="figure")
        one_cell = comparison["cell"].nunique() == 1
        metrics = [
            Metric(_key("/".join([figure, method, cell][: 2 if one_cell else 3])), value, now, 0)
            for cell, method, figure, value in figures.itertuples(index=False)
            if _is_number(value)
        ]
        self._is_there(sweep_id, "frontier", digest=None)
        tags = {"sweep_id": sweep_id, "trial_id": "frontier"}
        created = self.client.create_run(self.id, int(1000 * started), tags, run_name="frontier")
        run = created.info.run_id
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run, metrics[first : first + METRICS_PER_CALL])
        for name in REPORT:
            self.client.log_artifact(run, str(folder / name))
        tested = read_trials(folder / "trials.csv").dropna(subset=TESTED)
        for _, row in tested.iterrows():
            self._write_tested(sweep_id, row["trial_id"], {name: row[name] for name in TESTED}, now)
        self.client.set_terminated(run, "FINISHED", now)

    def _write_tested(
        self, sweep_id: str, trial_id: str, figures: Mapping[str, float], now: int
    ) -> None:
        """Adds what the test images say, unless it is there."""
        known: Mapping[str, float] = {}
        if trial_id not in self._runs:
            for found in self._find(sweep_id, trial_id):
                self._runs[trial_id], known = found.info.run_id, found.data.metrics
        for name, value in figures.items():
            if trial_id in self._runs and known.get(name) != value:
                self.client.log_metric(self._runs[trial_id], name, value, now, 0)

    def _is_there(self, sweep_id: str, trial_id: str, digest: str | None) -> bool:
        """Whether a run of that digest is there, whole. Others of the trial go into the bin."""
        whole = False
        for run in self._find(sweep_id, trial_id):
            ended = run.info.status != "RUNNING" and digest is not None
            if not whole and ended and run.data.tags.get("digest") == digest:
                whole, self._runs[trial_id] = True, run.info.run_id
            else:
                self.client.delete_run(run.info.run_id)
        return whole

    def _find(self, sweep_id: str, trial_id: str) -> list[Run]:
        """The runs of one trial of this sweep, but for those in the bin."""
        of_trial = f"tags.trial_id = '{trial_id}' and tags.sweep_id = '{sweep_id}'"
        return list(self.client.search_runs([self.id], of_trial))


def _figures(
    row: Mapping[str, Any], reports: Sequence[Mapping[str, float]]
) -> Iterator[tuple[str, float, int | None, int]]:
    """(name, value, milliseconds if known, step) of what was reported, then of the row.

    The row's figures come at the last step of the reports' of that name, so that a chart of
    val_accuracy ends at the trial's own val_accuracy.
    """
    last: dict[str, int] = {}
    for number, report in enumerate(reports):
        step = int(report.get("epoch", report.get("round", number)))
        timestamp = int(1000 * report["timestamp"]) if "timestamp" in report else None
        for name, value in report.items():
            if name not in ("epoch", "round", "timestamp") and _is_number(value):
                last[name] = max(step, last.get(name, 0))
                yield name, float(value), timestamp, step
    for name in METRICS:
        if _is_number(row.get(name)):
            yield name, float(row[name]), None, last.get(name, 0)


def _settings(row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a run: the trial's settings, and its options as trials.csv names them."""
    options = {name: value for name, value in row.items() if name in PARAMS or name not in COLUMNS}
    return {name: value for name, value in {**_flat(settings), **options}.items() if _given(value)}


def _times(row: Mapping[str, Any]) -> tuple[int, int]:
    """When the trial started and ended, in milliseconds since 1970."""
    start = datetime.fromisoformat(row["started_at"]).timestamp()
    return int(1000 * start), int(1000 * (start + row["duration_s"]))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training": {"epochs": 5}} -> {"training.epochs": 5}"""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _key(name: str) -> str:
    """The name with only such characters as MLflow allows."""
    return re.sub(r"[^\w.\-/: ]", " ", name)[:LONGEST_KEY]


def _given(value: object) -> bool:
    return value is not None and value is not pd.NA and value != "" and value == value


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
