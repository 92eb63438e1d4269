"""The driver of a sweep: gives out its jobs, and takes every row to its tables as it comes.

`run_on_ray` proposes with Optuna, runs on Ray and tells MLflow. `run_in_this_process` does the same
trials one after another with none of the three. Both leave the same folder behind.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.frontier import compare_methods, frontier
from orchestrator.jobs import FrontierTest, Job, TrialResult, Workplace, do_job, known_columns, splits_key
from orchestrator.plan import DenseNetwork, Trial, dense_networks, plain_trials, studies
from orchestrator.progress import Progress
from orchestrator.registry import method_class
from orchestrator.report import write_report
from orchestrator.sweep_file import Sweep
from orchestrator.trials_table import (
    TrialsTable,
    append_multiplications_per_class,
    table_columns,
    write_atomically,
    write_images,
)
from testbed.data import DataOptions, Splits, load_splits

if TYPE_CHECKING:  # a machine without Optuna and MLflow runs sweeps too
    from orchestrator.search import Proposer
    from orchestrator.tracking import Tracker

ALL_COMPLETED, SOME_FAILED, INTERRUPTED = 0, 1, 130  # exit statuses

RunJobs = Callable[[Sequence[Sequence[Job]], Callable[[], Job | None]], bool]
"""Runs batches of jobs, then those that are asked for; False if a signal ended it."""


def run_on_ray(sweep: Sweep, folder: Path, data_root: Path, address: str | None) -> int:
    """Runs a sweep on a Ray cluster, or on a local one that is started for it.

    Returns:
        The exit status.

    Raises:
        ValueError: if the data cannot be loaded or the cluster not be used; no folder is left then.
    """
    from orchestrator.ray_runner import Listener, connected, run_jobs
    from orchestrator.search import Proposer, n_tries, open_journal
    from orchestrator.tracking import Tracker

    shared = load_shared(sweep, data_root)
    planned = studies(sweep)
    total = sum(n_tries(study, sweep.search) for study in planned)
    with ExitStack() as stack:
        stack.enter_context(connected(address))
        progress = stack.enter_context(Progress(total))
        tracker = stack.enter_context(Tracker(sweep.name, folder.parent, progress.message))
        record = Record(sweep, folder, data_root, progress, tracker)
        proposer = Proposer(
            planned, sweep.objectives, sweep.search, open_journal(folder / "studies.journal")
        )
        record.proposer = proposer
        run = partial(
            run_jobs,
            work=partial(do_job, workplace=record.workplace),
            listener=Listener(record.started, record.reported, record.ended, record.lost),
            resources=sweep.resources,
            shared=shared,
        )
        return record.conduct(lambda batches, ask: run(batches, ask), proposer.ask)


def run_in_this_process(
    sweep: Sweep, folder: Path, data_root: Path, only: str | None = None
) -> int:
    """Runs a sweep of grids and fixed values, one trial after another.

    Args:
        only: the one method whose trials are run; None runs all.

    Returns:
        The exit status.

    Raises:
        ValueError: if an option is a range, or the data cannot be loaded; no folder is left then.
    """
    trials = [trial for trial in plain_trials(sweep) if only in (None, trial.method)]
    shared = load_shared(sweep, data_root)
    with Progress(len(trials)) as progress:
        record = Record(sweep, folder, data_root, progress)
        work = partial(do_job, workplace=record.workplace)

        def run(batches: Sequence[Sequence[Job]], ask: Callable[[], Job | None]) -> bool:
            for job in _in_turn(batches, ask):
                record.started(job)
                try:
                    record.ended(job, work(job, shared, partial(record.reported, job)))
                except KeyboardInterrupt:
                    record.lost(job, "stopped", "Stopped: the sweep was interrupted.")
                    return False
                except Exception as error:
                    # A dense network that cannot be trained fails its trials, not the sweep.
                    record.lost(job, "failed", f"{type(error).__name__}: {error}")
            return True

        waiting = iter(trials)
        return record.conduct(run, lambda: next(waiting, None))


def load_shared(sweep: Sweep, data_root: Path) -> dict[str, Splits]:
    """The splits of every data set and seed of the sweep, by `splits_key`."""
    shared: dict[str, Splits] = {}
    for study in studies(sweep):
        data = DataOptions.model_validate(study.options["data"])
        key = splits_key(data, study.seed)
        if key not in shared:
            shared[key] = load_splits(data, data_root, study.seed)
            _ = shared[key].fingerprint  # worked out here once, and not in every worker
    return shared


class Record:
    """Keeps what comes of a sweep's jobs: tables, progress, MLflow, the search, the report."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        data_root: Path,
        progress: Progress,
        tracker: "Tracker | None" = None,
    ) -> None:
        """Makes the run folder, which must not exist: nothing a user made is overwritten."""
        folder.mkdir(parents=True)
        write_atomically(folder / "sweep.yaml", sweep.dump().encode())
        self.workplace = Workplace(
            folder=folder.resolve(),
            dense=(folder.parent / "dense").resolve(),
            data_root=data_root.resolve(),
            threads=sweep.resources.cpus,
        )
        self.proposer: Proposer | None = None
        self._sweep = sweep
        self._folder = folder
        self._progress = progress
        self._tracker = tracker
        methods = {name: method_class(name) for name in sweep.methods}
        self._table = TrialsTable(
            folder / "trials.csv", table_columns(methods, varied_columns(sweep))
        )
        self._trials: dict[str, Trial] = {}
        self._reports: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._accuracies: dict[str, float] = {}
        self._statuses: set[str] = set()

    def conduct(self, run: RunJobs, ask: Callable[[], Trial | None]) -> int:
        """The whole sweep: dense networks, trials, the frontier's tests, the report."""
        self._progress.phase("dense networks")
        finished = run(_by_depth_of_teaching(dense_networks(self._sweep)), lambda: None)
        if finished:
            self._progress.phase("trials")
            finished = run([], ask)
        if finished:
            self._progress.phase("test images")
            finished = run([self._frontier_tests()], lambda: None)
            self._table.fill_test_accuracies(self._accuracies)
        write_report(self._folder)
        if self._tracker:
            comparison = compare_methods(self._table.read(), self._sweep.objectives)
            self._tracker.finish(self._folder, comparison)
        if not finished:
            return INTERRUPTED
        return ALL_COMPLETED if self._statuses <= {"completed"} else SOME_FAILED

    def started(self, job: Job) -> None:
        if isinstance(job, Trial):
            self._progress.trial_started(job.trial_id)

    def reported(self, job: Job, values: Mapping[str, float]) -> None:
        if isinstance(job, Trial):
            self._reports[job.trial_id].append({**values, "timestamp": time.time()})
            self._progress.trial_report(job.trial_id, values)

    def ended(self, job: Job, result: Any) -> None:
        """A job is done; `result` is what it returned."""
        if isinstance(job, Trial):
            self._keep(job, result)
        elif isinstance(job, FrontierTest):
            self._accuracies[job.trial.trial_id] = result

    def lost(self, job: Job, status: str, error: str) -> None:
        """A job came to nothing; `status` is failed or stopped."""
        if isinstance(job, Trial):
            row = known_columns(job) | {"status": status, "error": error, "duration_s": 0.0}
            self._keep(job, TrialResult(row))
        else:
            self._progress.message(f"{describe(job)}: {status}: {error.splitlines()[0]}")

    def _keep(self, trial: Trial, result: TrialResult) -> None:
        row = result.row
        self._trials[trial.trial_id] = trial
        self._statuses.add(row["status"])
        self._table.append(row)
        if result.per_class:
            append_multiplications_per_class(
                self._folder / "multiplications_per_class.csv", trial.trial_id, result.per_class
            )
        if result.images:
            write_images(self._folder, trial.trial_id, *result.images)
        if self.proposer:
            self.proposer.tell(trial.trial_id, row)
        reports = self._reports.pop(trial.trial_id, [])
        if self._tracker:
            self._tracker.trial_done(row, reports, trial_settings(trial))
        self._progress.trial_done(row)

    def _frontier_tests(self) -> list[Job]:
        best = frontier(self._table.read(), self._sweep.objectives)
        return [FrontierTest(self._trials[trial_id]) for trial_id in best["trial_id"]]


def describe(job: Job) -> str:
    """A job in a few words."""
    if isinstance(job, DenseNetwork):
        options = " ".join(f"{name}={value}" for name, value in job.backbone_options.items())
        return f"dense network {job.backbone} {options} seed={job.seed}"
    return job.trial_id if isinstance(job, Trial) else f"test of {job.trial.trial_id}"


def _by_depth_of_teaching(networks: Sequence[DenseNetwork]) -> list[list[Job]]:
    """Batches in which no network waits for a teacher in its own batch."""
    batches: dict[int, list[Job]] = defaultdict(list)
    for network in networks:
        generation, teacher = 0, network.teacher
        while teacher:
            generation, teacher = generation + 1, teacher.teacher
        batches[generation].append(network)
    return [batches[generation] for generation in sorted(batches)]


def _in_turn(
    batches: Sequence[Sequence[Job]], ask: Callable[[], Job | None]
) -> Iterator[Job]:
    for batch in batches:
        yield from batch
    yield from iter(ask, None)
