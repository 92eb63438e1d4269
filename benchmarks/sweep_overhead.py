"""What a sweep adds to its trials: seconds a trial for trials that do nothing.

    python -m benchmarks.sweep_overhead

Measured from the first trial's start to the last one's end, through all that a real sweep does for
a trial: a search over three options (random, one study, its journal), Ray, the tables and the
progress. Beside it: how much memory the driver has taken by then, and what the run folder holds.

With MLflow (a local database), trials of 20 reports, until MLflow has all of them, over the same
trials without. And what a proposal costs, with all that was proposed before it, sampler by sampler:
TPE and NSGA-II look at all trials there are and grow; `random` and `grid` do not.
"""

import io
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from rich.console import Console

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.console.progress import Progress
from orchestrator.driver.record import Record
from orchestrator.jobs.work import TrialResult, known_columns
from orchestrator.plan import Trial, studies
from orchestrator.search.proposer import Proposer
from orchestrator.search.study_storage import open_journal
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker
from orchestrator.tuning.connection import connected
from orchestrator.tuning.ray_runner import Listener, run_jobs
from orchestrator.tuning.ray_worker import Work
from testbed.training import Report

SWEEP_FILE = Path(__file__).parent / "surfaces" / "digits_l1.yaml"
FEW, MANY, MOST = 128, 1024, 10_000
ROUNDS = 3  # of FEW and MANY; MOST is run once
REPORTS = 20


@dataclass
class Overhead:
    """What one sweep of nothing came to."""

    n_trials: int
    span: float
    """Seconds from the first trial's start to the last one's end."""
    whole: float
    """Seconds from the first trial's start until MLflow had all, too."""
    memory: float
    """MB of the driver that no other process shares, after the last trial."""
    written: int
    """Bytes in the run folder."""
    resumed: float
    """Seconds that the command takes which finds the sweep finished, its report included."""

    @property
    def seconds(self) -> float:
        return self.span / self.n_trials


def nothing(trial: Trial, shared: Mapping[str, Any], report: Report) -> TrialResult:
    """The row of a trial, without the trial."""
    figures = {
        "val_accuracy": 0.5,
        "multiplications": 1e6,
        "dense_multiplications": 2e6,
        "test_accuracy": 0.5,
        "test_multiplications": 1e6,
        "test_images": 100,
        "duration_s": 0.0,
    }
    return TrialResult(known_columns(trial, datetime.now(UTC)) | {"status": "completed"} | figures)


def only_reports(trial: Trial, shared: Mapping[str, Any], report: Report) -> TrialResult:
    """The reports and the row of a trial, without the trial."""
    for epoch in range(1, REPORTS + 1):
        report({"epoch": epoch, "val_accuracy": 0.5, "train_loss": 1.0})
    return nothing(trial, shared, report)


def sweep_of_nothing(
    n_trials: int, work: Work = nothing, mlflow: bool = False, resume: bool = False
) -> Overhead:
    """`resume`: whether the command that would run the sweep is then run, and finds it finished."""
    overrides = ["search.sampler=random", f"search.trials={n_trials}"]
    sweep = load_sweep(SWEEP_FILE, overrides)
    starts, ends, resumed = [], [], math.nan
    with TemporaryDirectory() as name:
        output = Path(name)
        folder = output / sweep.name
        with (
            Progress(n_trials, Console(file=io.StringIO())) as progress,
            Tracker(sweep.name, output, print) if mlflow else nullcontext() as tracker,
        ):
            record = Record(sweep, folder, output, progress)
            journal = open_journal(folder / "studies.journal")
            proposer = Proposer(studies(sweep), sweep.objectives, sweep.search, journal)
            record.proposer, record.tracker = proposer, tracker

            def started(job: Trial) -> None:
                starts.append(time.perf_counter())
                record.started(job)

            def ended(job: Trial, result: TrialResult) -> None:
                record.ended(job, result)
                ends.append(time.perf_counter())

            listener = Listener(started, record.reported, ended, record.lost)
            assert run_jobs([proposer.ask], work, listener, sweep.resources)
            memory = private_memory()
            written = sum(path.stat().st_size for path in folder.rglob("*"))
            if mlflow:
                assert tracker is not None
                tracker.close()
            whole = time.perf_counter() - starts[0]
        if resume:
            begun = time.perf_counter()
            given = [word for override in overrides for word in ("--set", override)]
            command = [sys.executable, "-m", "orchestrator.sweep", str(SWEEP_FILE), *given]
            subprocess.run([*command, "--output", name], check=True, stdout=subprocess.DEVNULL)
            resumed = time.perf_counter() - begun
    assert len(ends) == n_trials
    return Overhead(n_trials, ends[-1] - starts[0], whole, memory, written, resumed)


def private_memory() -> float:
    """MB that this process shares with no other (Linux)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.MULTILINE))) / 1000


def proposals(samplers: Sequence[str], after: int) -> dict[str, float]:
    """Sampler -> seconds that a proposal and its end take, the median of ten after so many."""
    overrides = [f"search.trials={after + 10 * len(samplers)}"]
    generator = np.random.default_rng(0)
    rows: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as name:
        journal = open_journal(Path(name) / "studies.journal")

        def propose(sampler: str, n: int) -> Iterator[float]:
            sweep = load_sweep(SWEEP_FILE, [*overrides, f"search.sampler={sampler}"])
            (study,) = studies(sweep)
            proposer = Proposer([study], sweep.objectives, sweep.search, journal, rows)
            for _ in range(n):
                started = time.perf_counter()
                trial = proposer.ask()
                assert trial is not None
                accuracy, cost = generator.random(2)
                row = {"status": "completed", "val_accuracy": accuracy, "multiplications": cost}
                proposer.tell(trial.trial_id, row)
                yield time.perf_counter() - started
                rows[trial.trial_id] = {**row, "study": study.name}

        for _ in propose("random", after):
            pass
        return {sampler: statistics.median(propose(sampler, 10)) for sampler in samplers}


def bare_tasks(n_tasks: int) -> float:
    """Seconds a task that does nothing, in Ray alone."""
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
        sweep_of_nothing(FEW)  # what is imported and made once
        for _ in range(ROUNDS):
            few.append(sweep_of_nothing(FEW))
            many.append(sweep_of_nothing(MANY))
            growth.append(many[-1].seconds / few[-1].seconds)
            bare.append(bare_tasks(MANY))
        most = sweep_of_nothing(MOST)
        resumed = sweep_of_nothing(1000, resume=True).resumed
        off = sweep_of_nothing(FEW, only_reports)
        on = sweep_of_nothing(FEW, only_reports, mlflow=True)
    each = {
        FEW: statistics.median(run.seconds for run in few),
        MANY: statistics.median(run.seconds for run in many),
        MOST: most.seconds,
    }
    samplers = {
        f"seconds a proposal, {sampler}, after {after:,}": seconds
        for after in (FEW, MANY, MOST)
        for sampler, seconds in proposals(("random", "grid", "nsga2", "tpe"), after).items()
    }
    mlflow = f"seconds more a trial of {REPORTS} reports, MLflow on"
    ratios = {
        **{f"seconds a trial, {n:,} trials": s for n, s in each.items()},
        f"{MANY:,} trials over {FEW}": statistics.median(growth),
        f"{MOST:,} trials over {FEW}": each[MOST] / each[FEW],
        mlflow: (on.whole - off.span) / FEW,
        "seconds to resume 1,000 finished trials": resumed,
        f"seconds a bare Ray task, {MANY:,} tasks": statistics.median(bare),
        **samplers,
    }
    goals = {
        **{f"seconds a trial, {n:,} trials": Goal(at_most=0.03) for n in each},
        f"{MANY:,} trials over {FEW}": Goal(at_most=1.5),
        f"{MOST:,} trials over {FEW}": Goal(at_most=1.5),
        mlflow: Goal(at_most=0.1),
        "seconds to resume 1,000 finished trials": Goal(at_most=10),
    }
    notes = {
        f"{run.n_trials:,} trials": f"the driver then has {run.memory:.0f} MB of its own; "
        f"{run.written / run.n_trials / 1000:.1f} kB a trial written"
        for run in (few[0], many[0], most)
    }
    show(Result("sweep_overhead", ratios, goals, notes), args.json)


if __name__ == "__main__":
    main()
