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
from rich.console import Console

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.console.progress import Progress
from orchestrator.driver.coordinator import Coordinator
from orchestrator.plan import make_plan
from orchestrator.plan.jobs import Job, Outcome, StoredResult, TellRung, TrialResult, trial_of
from orchestrator.run_folder.recorder import Recorder
from orchestrator.run_folder.trial_row import known_columns
from orchestrator.search.proposer import Proposer
from orchestrator.search.study_storage import open_journal
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker
from orchestrator.tuning.callbacks.display import DisplayCallback
from orchestrator.tuning.callbacks.job_callback import JobCallback
from orchestrator.tuning.callbacks.mlflow import MLflowCallback
from orchestrator.tuning.callbacks.table import TableCallback
from orchestrator.tuning.connection import connected
from orchestrator.tuning.scheduler import MultiObjectiveASHA
from orchestrator.tuning.trainable import JOB, Work
from orchestrator.tuning.tuner import run_jobs
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


def nothing(job: Job, shared: Mapping[str, Any], report: Report, tell_rung: TellRung) -> Outcome:
    """The row of a trial, without the trial; and no dense network."""
    trial = trial_of(job)
    if trial is None:
        return StoredResult()
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


def only_reports(
    job: Job, shared: Mapping[str, Any], report: Report, tell_rung: TellRung
) -> Outcome:
    """The reports and the row of a trial, without the trial."""
    for epoch in range(1, REPORTS + 1):
        report({"epoch": epoch, "val_accuracy": 0.5, "train_loss": 1.0})
    return nothing(job, shared, report, tell_rung)


class Clock(JobCallback):
    """When trials start, and when all that is done for one is done: it stands last."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []
        self.ends: list[float] = []

    def job_started(self, job: Job) -> None:
        if trial_of(job):
            self.starts.append(time.perf_counter())

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        if trial_of(info["trial"].config[JOB]):
            self.ends.append(time.perf_counter())


def sweep_of_nothing(
    n_trials: int, work: Work = nothing, mlflow: bool = False, resume: bool = False
) -> Overhead:
    """`resume`: whether the command that would run the sweep is then run, and finds it finished."""
    overrides = ["search.sampler=random", f"search.trials={n_trials}"]
    plan = make_plan(load_sweep(SWEEP_FILE, overrides))
    sweep = plan.sweep
    clock, resumed = Clock(), math.nan
    with TemporaryDirectory() as name:
        output = Path(name)
        folder = output / sweep.name
        recorder = Recorder(plan, folder, output)
        with (
            Progress(n_trials, Console(file=io.StringIO())) as progress,
            Tracker(plan, folder, print) if mlflow else nullcontext() as tracker,
        ):
            journal = open_journal(folder / "studies.journal")
            proposer = Proposer(plan.studies, sweep.objectives, sweep.search, journal)
            coordinator = Coordinator(plan, proposer, recorder.table.read)
            callbacks: list[JobCallback] = [TableCallback(recorder)]
            if tracker:
                callbacks.append(MLflowCallback(tracker, recorder))
            callbacks += [DisplayCallback(progress, recorder), clock]
            scheduler = MultiObjectiveASHA(sweep.objectives, None)
            assert run_jobs(coordinator, work, callbacks, sweep.resources, scheduler=scheduler)
            starts, ends = clock.starts, clock.ends
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
            (study,) = make_plan(sweep).studies
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


def main() -> None:
    args = arguments(__doc__).parse_args()
    few, many, growth = [], [], []
    with connected(None):
        sweep_of_nothing(FEW)  # what is imported and made once
        most = sweep_of_nothing(MOST)  # before others leave anything in the driver's memory
        for _ in range(ROUNDS):
            few.append(sweep_of_nothing(FEW))
            many.append(sweep_of_nothing(MANY))
            growth.append(many[-1].seconds / few[-1].seconds)
        resumed = sweep_of_nothing(1000, mlflow=True, resume=True).resumed
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
    memory = f"GB of the driver's own after {MOST:,} trials"
    mlflow = f"seconds more a trial of {REPORTS} reports, MLflow on"
    ratios = {
        **{f"seconds a trial, {n:,} trials": s for n, s in each.items()},
        memory: most.memory / 1000,
        f"{MANY:,} trials over {FEW}": statistics.median(growth),
        f"{MOST:,} trials over {FEW}": each[MOST] / each[FEW],
        mlflow: (on.whole - off.span) / FEW,
        "seconds to resume 1,000 finished trials": resumed,
        **samplers,
    }
    goals = {
        **{f"seconds a trial, {n:,} trials": Goal(at_most=0.02) for n in each},
        memory: Goal(at_most=1.0),
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
