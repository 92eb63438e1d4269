"""A sweep that is written to MLflow trial by trial, and what MLflow then holds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from orchestrator.plan import make_plan
from orchestrator.run_folder.folder import REPORT
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker

SWEEP = """
name: sweep
data: {name: digits}
backbone: {name: conv, depth: 4}
training: {epochs: 5}
methods: {l1_filter: {keep_ratio: {uniform: [0.2, 0.9]}}}
"""


def started(
    output: Path, warn: Callable[[str], None], rows: Sequence[dict[str, Any]] = ()
) -> Tracker:
    plan = make_plan(load_sweep(output / "sweep.yaml"))
    return Tracker(plan, output / "sweep", warn, rows)


@contextmanager
def tracked(output: Path, *rows: dict[str, Any]) -> Iterator[Tracker]:
    """A tracker that must have nothing to complain of; `rows` are of earlier runs."""
    said: list[str] = []
    with started(output, said.append, rows) as tracker:
        yield tracker
    assert said == []
    assert tracker.where is not None


def all_runs(output: Path, sweep: str) -> list[str]:
    """The names of all runs, but for those in the bin."""
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))


def runs(output: Path, sweep: str) -> dict[str, Any]:
    """Run name -> MLflow's run."""
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    assert experiment.lifecycle_stage == "active"
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def history(output: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    """(step, value) of all that was logged under a metric's name, in order."""
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    logged = client.get_metric_history(run.info.run_id, metric)
    return [(entry.step, entry.value) for entry in logged]


def row(trial_id: str, **columns: Any) -> dict[str, Any]:
    usual = {
        "trial_id": trial_id,
        "phase": "search",
        "study": "l1_filter-s0",
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


NO_COMPARISON = pd.DataFrame({"cell": [], "method": []})


def write_report_files(folder: Path) -> None:
    for name in REPORT:
        (folder / name).write_text(name)
