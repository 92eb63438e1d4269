"""MLflow: one experiment a sweep, one flat run a trial.

Everything is written by one thread of the driver, through a queue, so that no trial waits for
MLflow: importing it, making its database and writing a trial take about 3 s, 9 s and 0.1 s. A
failure there is said once; the trials go on, and their results are in trials.csv all the same.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.trials_table import COLUMNS, read_trials

if TYPE_CHECKING:  # importing MLflow takes seconds, which only the thread spends
    from mlflow import MlflowClient

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
ARTIFACTS = ("frontier.csv", "report.html", "report.md", "frontier.png")
STATUS = {
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}

# MLflow takes 1000 things in one call, 100 of them params, and so many characters of each.
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 6000, 5000, 250

FAILURES_BEFORE_GIVING_UP = 3  # in a row: a server that is down answers after minutes each time
PATIENCE_S = 60.0  # for the next run to be written, once all trials have ended


class Tracker:
    """Writes one sweep to MLflow, in the background. Use as a context manager."""

    def __init__(self, sweep_name: str, output: Path, warn: Callable[[str], None]) -> None:
        """Starts writing to MLFLOW_TRACKING_URI, or else to `OUTPUT/mlflow.db`.

        Args:
            output: the folder of all sweeps, that also gets the artifacts of a local database.
            warn: told in one sentence when MLflow fails, from another thread.
        """
        self._name = sweep_name
        self._output = output.resolve()
        self._output.mkdir(parents=True, exist_ok=True)
        local = f"sqlite:///{self._output / 'mlflow.db'}"
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        self._artifacts = self._output / "mlflow_artifacts" / sweep_name
        self._warn = warn
        self._started = time.time()
        self._jobs: queue.SimpleQueue[Callable[[_Experiment], None] | None]
        self._jobs = queue.SimpleQueue()
        self._said = False
        self._handled = self._lost = 0  # runs
        self._thread = threading.Thread(target=self._write, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def trial_done(
        self,
        row: Mapping[str, Any],
        reports: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any],
    ) -> None:
        """Hands over one trial that has ended.

        Args:
            row: its row of trials.csv.
            reports: what it reported, in order; `epoch`, or else `round`, is the step of a report's
                other figures, and `timestamp` (Unix seconds) when it came.
            settings: further settings of the trial, nested as in the sweep file.
        """
        self._jobs.put(lambda experiment: experiment.write_trial(row, reports, settings))

    def finish(self, folder: Path, comparison: pd.DataFrame) -> None:
        """Hands over the report, as a run named `frontier`.

        Args:
            folder: the run folder, its report written.
            comparison: of `compare_methods`; its figures become metrics.
        """
        started = self._started
        self._jobs.put(lambda experiment: experiment.write_frontier(started, folder, comparison))

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Waits until everything is written, or nothing was for so long."""
        self._jobs.put(None)
        handled = -1
        while self._thread.is_alive() and self._handled > handled:
            handled = self._handled
            self._thread.join(patience_s)
        if self._thread.is_alive():
            self._warn(f"MLflow at {self._uri} took no run within {patience_s:.0f} s; giving up.")
        elif self._lost:
            self._warn(f"MLflow at {self._uri} lacks {self._lost} of this sweep's runs.")

    def _write(self) -> None:
        """The thread: writes what the queue holds, until it holds None."""
        failures = 0
        try:
            with _one_process_at_a_time(self._output):
                experiment = _Experiment(self._name, self._uri, self._artifacts)
        except Exception as error:  # whatever MLflow raises, no trial may be lost for it
            failures = self._failed(error, FAILURES_BEFORE_GIVING_UP)
        for job in iter(self._jobs.get, None):
            if failures == FAILURES_BEFORE_GIVING_UP:
                self._lost += 1
                continue
            try:
                job(experiment)
                failures = 0
            except Exception as error:  # as above
                self._lost += 1
                failures = self._failed(error, failures + 1)
            self._handled += 1

    def _failed(self, error: Exception, failures: int) -> int:
        """Says the first failure, and returns how many there were in a row."""
        if not self._said:
            self._said = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._warn(
                f"MLflow at {self._uri} fails ({reason}). The trials go on; their results are in "
                "trials.csv."
            )
        return failures


@contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Sweeps that start together would make the database's tables twice, which MLflow fails on."""
    with (folder / ".mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


class _Experiment:
    """One experiment of MLflow. Its methods raise whatever MLflow raises."""

    def __init__(self, name: str, uri: str, artifacts: Path) -> None:
        """Finds the experiment, takes it out of the bin, or makes it and its database."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a sweep calls nobody
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self.runs: dict[str, str] = {}  # trial_id -> MLflow's id
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server decides itself where artifacts go.
            location = artifacts.as_uri() if uri.startswith("sqlite:") else None
            self.id = self.client.create_experiment(name, artifact_location=location)
            return
        self.id = found.experiment_id
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(self.id)

    def write_trial(
        self,
        row: Mapping[str, Any],
        reports: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any],
    ) -> None:
        """One flat run: three calls, unless the trial reported more than 900 figures."""
        from mlflow.entities import Metric, Param

        start, end = _times(row)
        tags = {name: str(row[name])[:LONGEST_TAG] for name in TAGS if _given(row.get(name))}
        metrics = [
            Metric(_key(name), value, timestamp or end, step)
            for name, value, timestamp, step in _figures(row, reports)
        ]
        params = [
            Param(_key(name), str(value)[:LONGEST_PARAM])
            for name, value in _settings(row, settings).items()
        ]
        run = self.client.create_run(self.id, start, tags, run_name=row["trial_id"]).info.run_id
        self.runs[row["trial_id"]] = run
        calls = max(len(metrics) / METRICS_PER_CALL, len(params) / PARAMS_PER_CALL)
        for call in range(math.ceil(calls)):
            some_metrics = metrics[call * METRICS_PER_CALL : (call + 1) * METRICS_PER_CALL]
            some_params = params[call * PARAMS_PER_CALL : (call + 1) * PARAMS_PER_CALL]
            self.client.log_batch(run, some_metrics, some_params)
        self.client.set_terminated(run, STATUS[row["status"]], end)

    def write_frontier(self, started: float, folder: Path, comparison: pd.DataFrame) -> None:
        """The run `frontier`; and the tests' figures, which came after their runs had ended."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        figures = comparison.melt(["cell", "method"], var_name="figure")
        one_cell = comparison["cell"].nunique() == 1
        metrics = [
            Metric(_key("/".join([figure, method, cell][: 2 if one_cell else 3])), value, now, 0)
            for cell, method, figure, value in figures.itertuples(index=False)
            if _is_number(value)
        ]
        run = self.client.create_run(self.id, int(1000 * started), run_name="frontier").info.run_id
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run, metrics[first : first + METRICS_PER_CALL])
        for name in ARTIFACTS:
            self.client.log_artifact(run, str(folder / name))
        tested = read_trials(folder / "trials.csv").dropna(subset=TESTED)
        for _, row in tested[tested["trial_id"].isin(self.runs)].iterrows():
            for name in TESTED:
                self.client.log_metric(self.runs[row["trial_id"]], name, row[name], now, 0)
        self.client.set_terminated(run, "FINISHED", now)


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
