"""What a sweep adds to its trials: seconds a trial for trials that do nothing.

    python -m benchmarks.sweep_overhead

Measured from the first trial's start to the last one's end, through all that a real sweep does for
a trial: a search over three options (random, one study, its journal), Ray Tune, the tables and the
progress; then with MLflow too, in whose case the time until it has taken everything is given as
well. Beside it, bare Ray tasks on the same workers' cores.
"""

import io
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from rich.console import Console

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.jobs import TrialResult, known_columns
from orchestrator.plan import Trial, studies
from orchestrator.progress import Progress
from orchestrator.ray_runner import Listener, connected, run_jobs
from orchestrator.record import Record
from orchestrator.search import Proposer
from orchestrator.study_storage import open_journal
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking import Tracker
from testbed.training import Report

SWEEP_FILE = Path(__file__).parent / "surfaces" / "digits_l1.yaml"
FEW, MANY = 128, 1024
ROUNDS = 3


@dataclass
class Span:
    """When the first trial started, and the last one ended."""

    start: float = 0.0
    end: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.start


def nothing(trial: Trial, shared: Mapping[str, Any], report: Report) -> TrialResult:
    """The row of a trial, without the trial."""
    figures = {"val_accuracy": 0.5, "multiplications": 1e6, "duration_s": 0.0}
    return TrialResult(known_columns(trial, datetime.now(UTC)) | {"status": "completed"} | figures)


def sweep_of_nothing(n_trials: int, mlflow: bool) -> tuple[float, float]:
    """Seconds a trial: until the last one's end, and until MLflow has them all."""
    overrides = ["search.sampler=random", f"search.trials={n_trials}"]
    sweep = load_sweep(SWEEP_FILE, overrides)
    span = Span()
    with TemporaryDirectory() as name:
        folder = Path(name) / sweep.name
        with (
            Progress(n_trials, Console(file=io.StringIO())) as progress,
            Tracker(sweep.name, folder.parent, print) if mlflow else nullcontext() as tracker,
        ):
            record = Record(sweep, folder, Path(name), progress)
            journal = open_journal(folder / "studies.journal")
            proposer = Proposer(studies(sweep), sweep.objectives, sweep.search, journal)
            record.proposer, record.tracker = proposer, tracker

            def started(job: Trial) -> None:
                span.start = span.start or time.perf_counter()
                record.started(job)

            def ended(job: Trial, result: TrialResult) -> None:
                record.ended(job, result)
                span.end = time.perf_counter()

            listener = Listener(started, record.reported, ended, record.lost)
            assert run_jobs([proposer.ask], nothing, listener, sweep.resources)
    return span.seconds / n_trials, (time.perf_counter() - span.start) / n_trials


def bare_tasks(n_tasks: int) -> float:
    """Seconds a task that does nothing, in Ray without Tune."""
    task = ray.remote(num_cpus=1)(_return)
    ray.get([task.remote(number) for number in range(8)])  # its workers start
    started = time.perf_counter()
    ray.get([task.remote(number) for number in range(n_tasks)])
    return (time.perf_counter() - started) / n_tasks


def _return(number: int) -> int:
    return number


def main() -> None:
    args = arguments(__doc__).parse_args()
    few, many, growth, bare = [], [], [], []
    with connected(None):
        for _ in range(ROUNDS):
            few.append(sweep_of_nothing(FEW, mlflow=False)[0])
            many.append(sweep_of_nothing(MANY, mlflow=False)[0])
            growth.append(many[-1] / few[-1])
            bare.append(bare_tasks(MANY))
        with_mlflow = {n: sweep_of_nothing(n, mlflow=True) for n in (FEW, MANY)}
    ratios = {
        f"seconds a trial, {FEW} trials": statistics.median(few),
        f"seconds a trial, {MANY} trials": statistics.median(many),
        f"{MANY} trials over {FEW}": statistics.median(growth),
        **{f"seconds a trial, {n} trials, MLflow on": span for n, (span, _) in with_mlflow.items()},
        f"seconds a bare Ray task, {MANY} tasks": statistics.median(bare),
    }
    goals = {
        f"seconds a trial, {FEW} trials": Goal(at_most=0.05),
        f"seconds a trial, {MANY} trials": Goal(at_most=0.05),
        f"{MANY} trials over {FEW}": Goal(at_most=1.0),
    }
    notes = {
        f"{n} trials": f"MLflow had all of them after {whole * n:.1f} s"
        for n, (_, whole) in with_mlflow.items()
    }
    show(Result("sweep_overhead", ratios, goals, notes), args.json)


if __name__ == "__main__":
    main()
