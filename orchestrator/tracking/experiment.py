"""How a sweep looks in MLflow: one experiment, one flat run a trial, and a run of the report.

Every run has the tags `trial_id` and `sweep_id`, by which it is found again: what was sent before
and is whole is not sent twice, what was cut off or has changed since is replaced. A trial's run is
whole if it ended as the row of trials.csv says, and when; the report's has the report's digest.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.analysis.answer import cascade_said
from orchestrator.analysis.decision import Decision
from orchestrator.analysis.pareto import LATENCY_RATIOS
from orchestrator.analysis.seed_means import confirmed
from orchestrator.formatting import mean_and_deviation
from orchestrator.palette import LIGHT, lighter, method_marks
from orchestrator.plan import Plan, Trial
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.run_folder.folder import REPORT, digest, sweep_id
from orchestrator.run_folder.reader import trial_of_row
from orchestrator.run_folder.trial_files import read_reports
from orchestrator.run_folder.trials_table import COLUMNS, cell_text, read_trials
from orchestrator.tracking.view import RUN_COLOUR, TAG, view_to_write

if TYPE_CHECKING:  # importing MLflow takes seconds, which only the tracker's thread spends
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunInfo

PARAMS = (
    *("method", "dataset", "classes", "validation_images", "backbone", "depth", "dropout"),
    *("seed", "fine_tuning_epochs", "threads"),
)
TAGS = (
    *("status", "error", "method", "cell", "study", "phase", "confirms"),
    *("device", "torch_version", "code_version"),
)
RATIOS = ("share", *LATENCY_RATIOS)  # metrics of a run that its row does not hold: over dense
METRICS = tuple(name for name in COLUMNS if name not in (*PARAMS, *TAGS, "trial_id", "started_at"))
NOTE = "mlflow.note.content"  # what the UI shows as the description of an experiment, in Markdown
FRONTIER = "frontier"  # no trial's id: those end with a number
TESTED = ("test_accuracy", "test_multiplications")
STATUS = {
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}

# MLflow takes 1000 things in one call, 100 of them params, and so many characters of each.
METRICS_PER_CALL, PARAMS_PER_CALL, RUNS_PER_CALL = 900, 100, 1000
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 6000, 5000, 250

SQLITE = "sqlite:///"
IN_MEMORY = "/dev/shm"  # a folder, on Linux
# The tracker tries again itself. A request that MLflow's own client repeats may be done twice.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def tracking_uri(output: Path) -> str:
    """Where the runs of a folder of sweeps go: MLFLOW_TRACKING_URI, or else `OUTPUT/mlflow.db`."""
    local = f"{SQLITE}{output.resolve() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or local


def open_client(uri: str) -> MlflowClient:
    """MLflow's client, that calls nobody else and leaves trying again to us."""
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _make_database(uri: str) -> None:
    """Makes the file of a local database, if there is none, whole or not at all.

    MLflow takes some seconds for its tables, on a disk twice as many as in memory, since it commits
    some hundred times; a half-made one of a killed driver it never mends.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.exists():
        return
    with TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:
        made = Path(folder) / path.name
        open_client(f"{SQLITE}{made}").search_experiments()
        write_atomically(path, made.read_bytes())


class Experiment:
    """The experiment of one sweep. Its methods raise whatever MLflow raises."""

    def __init__(self, plan: Plan, folder: Path, uri: str) -> None:
        """Finds the experiment, takes it out of the bin, or makes it and its database; asks what
        runs of the sweep it has, and writes the view "Frontier", unless it is there.

        Args:
            folder: the run folder, beside which a local database keeps its artifacts.
        """
        self._plan, self._folder, self._sweep_id = plan, folder, sweep_id(folder)
        marks = method_marks(list(plan.sweep.methods), LIGHT)
        self._colours = {method: colour for method, (colour, *_) in marks.items()}
        name, output = plan.sweep.name, folder.parent
        with (output / ".mlflow.lock").open("w") as lock:
            # Sweeps that start together would make its tables twice, which MLflow fails on.
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            _make_database(uri)
            self.client = open_client(uri)
            found = self.client.get_experiment_by_name(name)
            if found is None:
                artifacts = output / "mlflow_artifacts" / name
                # A server decides itself where artifacts go.
                location = artifacts.as_uri() if uri.startswith(SQLITE) else None
                self.id = self.client.create_experiment(name, artifact_location=location)
                self.client.set_experiment_tag(self.id, NOTE, _note(name))
            else:
                self.id = found.experiment_id
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(self.id)
        view = view_to_write(found.tags.get(TAG) if found else None)
        if view is not None:
            self.client.set_experiment_tag(self.id, TAG, view)
        self._runs = self._find()

    def write_trial(self, row: Mapping[str, Any]) -> None:
        """Writes the run of a row of trials.csv, unless MLflow has it: three calls, but for a trial
        that reported more than 900 figures.

        `epoch`, or else `round`, is the step of a report's other figures, and `timestamp` (Unix
        seconds) when it came.
        """
        from mlflow.entities import Metric, Param

        trial_id, status, (start, end) = row["trial_id"], STATUS[row["status"]], _times(row)
        ended = (status, start, end)
        if self._is_there(
            trial_id, lambda run: (run.status, run.start_time, run.end_time) == ended
        ):
            return
        tags = {name: str(row[name])[:LONGEST_TAG] for name in TAGS if cell_text(row.get(name))}
        tags |= {"sweep_id": self._sweep_id, "trial_id": trial_id, "sweep": self._plan.sweep.name}
        if row["method"] in self._colours:
            colour = self._colours[row["method"]]
            again = row.get("phase") == "confirmation"
            tags[RUN_COLOUR] = lighter(colour) if again else colour
        reports = read_reports(self._folder / "reports" / f"{trial_id}.jsonl")
        metrics = [
            Metric(_key(name), value, timestamp or end, step)
            for name, value, timestamp, step in _figures(row, reports)
        ]
        params = [
            Param(_key(name), str(value)[:LONGEST_PARAM])
            for name, value in _settings(row, trial_of_row(self._plan, row)).items()
        ]
        run = self.client.create_run(self.id, start, tags, run_name=trial_id).info
        self._log(run.run_id, metrics, params)
        self.client.set_terminated(run.run_id, status, end)
        self._runs[trial_id] = [run]

    def write_frontier(
        self, started: float, comparison: pd.DataFrame, found: Sequence[Decision] = ()
    ) -> None:
        """Writes the run `frontier`, in place of an earlier one; and the tests' figures, which came
        after their runs had ended. Nothing where MLflow has the report of the sweep as it is.

        What the confirmations of a trial came to is written to the run of that trial.

        Args:
            comparison: of `compare_methods`; its figures become metrics.
            found: the best network at each budget, which become metrics and tags.
        """
        from mlflow.entities import Metric

        now, current = int(1000 * time.time()), digest(self._folder)

        def is_current(run: RunInfo) -> bool:
            known = self.client.get_run(run.run_id)
            return known.info.status == "FINISHED" and known.data.tags.get("digest") == current

        if self._is_there(FRONTIER, is_current):
            return
        figures = comparison.melt(["cell", "method"], var_name="figure")
        one_cell = comparison["cell"].nunique() == 1
        metrics = [
            Metric(_key("/".join([figure, method, cell][: 2 if one_cell else 3])), value, now, 0)
            for cell, method, figure, value in figures.itertuples(index=False)
            if _is_number(value)
        ]
        tags = {"sweep_id": self._sweep_id, "trial_id": FRONTIER, "digest": current}
        tags |= {"sweep": self._plan.sweep.name, "phase": "report"}
        for decision in found:
            place = "" if one_cell else f"/{decision.cell}"
            name = _key(f"best_at_{100 * decision.budget:g}{place}")
            tags[name] = f"{decision.best.method}: {decision.best.trial_id}"
            if decision.cascade is not None:
                tags[_key(f"cascade_at_{100 * decision.budget:g}{place}")] = cascade_said(
                    decision.cascade
                )[:LONGEST_TAG]
            metrics += [
                Metric(_key(f"{name}/{figure}"), decision.best.mean(figure), now, 0)
                for figure in ("accuracy", *RATIOS)
                if _is_number(decision.best.mean(figure))
            ]
        created = self.client.create_run(self.id, int(1000 * started), tags, run_name=FRONTIER)
        run = created.info.run_id
        self._log(run, metrics)
        for name in REPORT:
            self.client.log_artifact(run, str(self._folder / name))
        trials = read_trials(self._folder / "trials.csv")
        for _, point in confirmed(trials).iterrows():
            self._add_confirmation(point, now)
        tested = trials.dropna(subset=TESTED)
        for trial_id, *values in tested[["trial_id", *TESTED]].itertuples(index=False):
            for trial in self._runs.get(trial_id, ()):
                known = self.client.get_run(trial.run_id).data.metrics
                for name, value in zip(TESTED, values, strict=True):
                    if known.get(name) != value:
                        self.client.log_metric(trial.run_id, name, value, now, 0)
        self.client.set_terminated(run, "FINISHED", now)

    def _add_confirmation(self, point: pd.Series, now: int) -> None:
        """Writes what a trial's confirmations came to into its run.

        Args:
            point: of `confirmed`.
        """
        from mlflow.entities import Metric, RunTag

        figures = {
            "confirmed_accuracy": point["test_accuracy"],
            "confirmed_deviation": point["test_deviation"],
            "confirmed_seeds": point["n"],
            **{f"confirmed_{ratio}": point[ratio] for ratio in RATIOS},
        }
        metrics = [Metric(n, float(v), now, 0) for n, v in figures.items() if _is_number(v)]
        reached = mean_and_deviation(point["test_accuracy"], point["test_deviation"])
        tag = RunTag("confirmed", f"{reached} on test images, n = {point['n']}")
        for run in self._runs.get(point["trial_id"], ()):
            known = self.client.get_run(run.run_id).data
            if known.tags.get(tag.key) != tag.value:
                self.client.log_batch(run.run_id, metrics, tags=[tag])

    def _find(self) -> dict[str, list[RunInfo]]:
        """The runs of this sweep by their trials, but for those in the bin."""
        found = defaultdict(list)
        of_sweep, token = f"tags.sweep_id = '{self._sweep_id}'", None
        while token != "":
            page = self.client.search_runs(
                [self.id], of_sweep, max_results=RUNS_PER_CALL, page_token=token
            )
            for run in page:
                found[run.data.tags["trial_id"]].append(run.info)
            token = page.token or ""
        return found

    def _is_there(self, trial_id: str, is_whole: Callable[[RunInfo], bool]) -> bool:
        """Whether MLflow has a trial's run, whole. Its others go into the bin: they were cut off,
        sent twice, or have changed since."""
        runs = self._runs.pop(trial_id, [])
        whole = next(filter(is_whole, runs), None)
        for run in runs:
            if run is not whole:
                self.client.delete_run(run.run_id)
        if whole is not None:
            self._runs[trial_id] = [whole]
        return whole is not None

    def _log(self, run: str, metrics: list[Metric], params: Sequence[Param] = ()) -> None:
        calls = max(len(metrics) / METRICS_PER_CALL, len(params) / PARAMS_PER_CALL)
        for call in range(math.ceil(calls)):
            some_metrics = metrics[call * METRICS_PER_CALL : (call + 1) * METRICS_PER_CALL]
            some_params = params[call * PARAMS_PER_CALL : (call + 1) * PARAMS_PER_CALL]
            self.client.log_batch(run, some_metrics, some_params)


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
    over_dense = {"share": "multiplications", **LATENCY_RATIOS}
    for name, own in over_dense.items():
        if _is_number(row.get(own)) and _is_number(row.get(f"dense_{own}")):
            yield name, float(row[own]) / float(row[f"dense_{own}"]), None, 0


def _settings(row: Mapping[str, Any], trial: Trial) -> dict[str, Any]:
    """The params of a run: the trial's settings, and its options as trials.csv names them."""
    sections = trial.model_dump(mode="json", include={"data", "training", "fine_tuning"})
    sections["backbone"] = trial.backbone_options  # as the sweep file has them
    settings = pd.json_normalize(sections).to_dict("records")[0]  # {"training.epochs": 5}
    settings |= {name: row.get(name) for name in PARAMS}
    settings |= {f"{trial.method}.{name}": value for name, value in trial.options.items()}
    return {str(n): value for n, value in settings.items() if value != {} and cell_text(value)}


def _note(sweep: str) -> str:
    return (
        f"Trials of the pruning sweep {sweep}. Charts: the view `Frontier`. Report: the artifacts "
        f"`report.html` and `frontier.html` of the run `{FRONTIER}`."
    )


def _times(row: Mapping[str, Any]) -> tuple[int, int]:
    """When the trial started and ended, in milliseconds since 1970."""
    start = datetime.fromisoformat(row["started_at"]).timestamp()
    return int(1000 * start), int(1000 * (start + row["duration_s"]))


def _key(name: str) -> str:
    """The name with only such characters as MLflow allows."""
    return re.sub(r"[^\w.\-/: ]", " ", name)[:LONGEST_KEY]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
