"""What comes of a sweep's jobs is kept: tables, progress, MLflow, the search, the report."""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.comparison import compare_methods
from orchestrator.analysis.pareto import to_be_confirmed, to_be_tested
from orchestrator.console.progress import Progress
from orchestrator.driver.schedule import Later, Schedule
from orchestrator.jobs.work import (
    DiskIsFull,
    FrontierTest,
    Job,
    TrialResult,
    Workplace,
    job_name,
    known_columns,
)
from orchestrator.methods import method_class
from orchestrator.plan import (
    DenseNetwork,
    Trial,
    confirmation,
    confirmations,
    dense_networks,
)
from orchestrator.run_folder.folder import begin, go_on, report_is_current
from orchestrator.run_folder.trials_table import (
    HELD_BY_COLUMNS,
    TrialsTable,
    append_multiplications_per_class,
    keep_rows,
    present,
    table_columns,
    write_images,
)
from orchestrator.search.rungs import Rungs
from orchestrator.sweep_file import Sweep
from orchestrator.tracking.outbox import Outbox

if TYPE_CHECKING:  # a machine without Optuna and MLflow runs sweeps too
    from orchestrator.search.proposer import Proposer
    from orchestrator.tracking.tracker import Tracker

ALL_COMPLETED, SOME_FAILED, INTERRUPTED = 0, 1, 130  # exit statuses
ENDED_WELL = {"completed", "stopped_early"}

Phase = Callable[[], Job | Later | None]
"""Gives the next job of a part of the sweep, None after its last, and `LATER` where one that runs
must end first. A phase begins when all jobs of the one before have ended."""


class Record:
    """One sweep's run folder, from its start to its report, and all who hear of its trials."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        data_root: Path,
        progress: Progress,
        retry_failed: bool = False,
    ) -> None:
        """Makes the run folder, or goes on in the one that is there: see `check_goes_on`.

        Args:
            retry_failed: whether trials that failed are to be run again, as stopped ones are.

        Raises:
            ValueError: if a table that is there is damaged.
        """
        if folder.exists():
            go_on(folder, sweep)
        else:
            begin(folder, sweep)
        self.workplace = Workplace(
            folder=folder.resolve(),
            dense=(folder.parent / "dense").resolve(),
            data_root=data_root.resolve(),
            resources=sweep.resources,
            rungs=_rungs(sweep, folder.resolve()),
        )
        self.proposer: Proposer | None = None
        self.tracker: Tracker | None = None
        self._sweep = sweep
        self._folder = folder
        self._progress = progress
        methods = {name: method_class(name) for name in sweep.methods}
        self._varied = [path for path in sweep.varied if path not in HELD_BY_COLUMNS]
        self._table = TrialsTable(folder / "trials.csv", table_columns(methods, self._varied))
        self.spans: list[tuple[str, float]] = []
        """When trials ran before this driver, also those that were stopped: start, seconds."""
        self.rows = self._take_up({"stopped", "failed"} if retry_failed else {"stopped"})
        """Of the trials that ended before this driver, by trial_id; a missing value is None."""
        self.find_trial: Callable[[str], Trial] | None = None
        """Gives such a trial by its id."""
        self._trials: dict[str, Trial] = {}
        self._reports: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._tested: dict[str, dict[str, float]] = {}
        self._statuses = {row["status"] for row in self.rows.values()}
        self._schedule: Schedule | None = None
        self._confirmations: Iterator[Trial] | None = None
        self._tests: Iterator[FrontierTest] | None = None
        self._started: dict[str, datetime] = {}

    def nothing_left(self) -> bool:
        """Whether every trial has been proposed and run, and the frontier tested."""
        searching = self.proposer and self.proposer.left
        return not (searching or self._to_be_confirmed() or self._to_be_tested())

    def phases(self, ask: Callable[[], Trial | None], total: float) -> list[Phase]:
        """Dense networks and trials, each trial once its networks are there; then confirmations of
        the frontier, then the tests.

        Args:
            ask: gives the trials, of which there are `total`, infinite if that is not known.
        """
        self._schedule = Schedule(
            dense_networks(self._sweep), ask, lambda trial, error: self.lost(trial, "failed", error)
        )
        self._progress.phase("Trials", total)
        return [self._schedule.next, self._next_confirmation, self._next_test]

    def finish(self, whole: bool) -> int:
        """Writes the report, of the whole sweep or of what there is, if that is not what it shows.

        Returns:
            The exit status.
        """
        if self._tested:
            self._table.fill(self._tested)
        if not report_is_current(self._folder):
            from orchestrator.report import headline, write_report  # seconds of imports

            write_report(self._folder)
            self._progress.message(headline(self._folder))
        self._progress.message(f"Report: {self._folder / 'report.html'}")
        if self.tracker:
            comparison = compare_methods(self._table.read(), self._sweep.objectives)
            self.tracker.finish(comparison)
        if not whole:
            return INTERRUPTED
        return ALL_COMPLETED if self._statuses <= ENDED_WELL else SOME_FAILED

    def started(self, job: Job) -> None:
        self._started[job_name(job)] = datetime.now(UTC)
        self._progress.trial_started(job_name(job))

    def reported(self, job: Job, values: Mapping[str, float]) -> None:
        if isinstance(job, Trial):
            self._reports[job.trial_id].append({**values, "timestamp": time.time()})
        self._progress.trial_report(job_name(job), values)

    def ended(self, job: Job, result: Any) -> None:
        """A job is done; `result` is what it returned.

        Raises:
            OSError: if the disk is full, there or here. The job is done again then, when the sweep
                goes on.
        """
        if isinstance(result, DiskIsFull):
            raise OSError(result.errno, result.text)
        name = job_name(job)
        if isinstance(job, Trial | DenseNetwork):
            for text in result.warnings:
                self._progress.message(f"{name}: {text}")
        if isinstance(job, Trial):
            self._keep(job, result)
            return
        if isinstance(job, DenseNetwork):
            if self._schedule:
                self._schedule.trained(job)
            self._progress.dense_done(name, "completed", f"{name}  is there")
            return
        trial_id = job.trial.trial_id
        self._tested[trial_id] = {
            "test_accuracy": result.accuracy,
            "test_multiplications": result.multiplications,
            "test_images": result.images,
        }
        path = self._folder / "test_multiplications_per_class.csv"
        append_multiplications_per_class(path, trial_id, result.per_class)
        self._progress.test_done(name, "completed", f"{name}  test {result.accuracy:.3f}")

    def lost(self, job: Job, status: str, error: str) -> None:
        """A job came to nothing; `status` is failed or stopped."""
        if isinstance(job, Trial):
            started = self._started.get(job.trial_id, datetime.now(UTC))
            lasted = (datetime.now(UTC) - started).total_seconds()
            outcome = {"status": status, "error": error, "duration_s": lasted}
            self._keep(job, TrialResult(known_columns(job, started) | outcome))
            return
        name = job_name(job)
        text = f"{name}  {status}: {error.splitlines()[0]}"
        if isinstance(job, DenseNetwork):
            if self._schedule and status == "failed":
                self._schedule.failed(job, f"Its dense network ({name}) failed: {error}")
            self._progress.dense_done(name, status, text)
        else:
            self._statuses.add(status)  # the row lacks an accuracy
            self._progress.test_done(name, status, text)

    def restarted(self, job: Job, reason: str) -> None:
        """A job's worker was lost; the job starts again, where it has a checkpoint from there, and
        reports once more what it has reported."""
        self._reports.pop(job_name(job), None)
        why = reason.splitlines()[0]
        self._progress.message(f"{job_name(job)} goes on in another process. {why}")

    def _keep(self, trial: Trial, result: TrialResult) -> None:
        """Keeps a trial that has ended. Its row of trials.csv says that everything before is there;
        what a killed driver has not done after it, the next one does from the row."""
        trial_id = trial.trial_id
        row = result.row | {path: trial.option(path) for path in self._varied}
        if result.per_class:
            path = self._folder / "multiplications_per_class.csv"
            append_multiplications_per_class(path, trial_id, result.per_class)
        if result.images:
            write_images(self._folder, trial_id, *result.images)
        reports = self._reports.pop(trial_id, [])
        if self.tracker:
            settings = trial.model_dump(mode="json", include={"data", "training", "fine_tuning"})
            settings["backbone"] = trial.backbone_options  # as the sweep file has them
            self.tracker.keep(row, reports, settings)
        self._table.append(row)
        if row["status"] in ENDED_WELL:
            shutil.rmtree(self.workplace.checkpoints(trial_id), ignore_errors=True)
        self._trials[trial_id] = trial
        self._statuses.add(row["status"])
        proposed = trial.phase == "search" and row["status"] != "stopped"  # else it goes on so
        if self.proposer and proposed:
            self.proposer.tell(trial_id, row)
        if self.tracker:
            self.tracker.send(trial_id)
        self._progress.trial_done(row)

    def _next_confirmation(self) -> Trial | None:
        """A trial on a frontier, with a fresh seed; which, is known once the search has ended."""
        if self._confirmations is None:
            again = self._to_be_confirmed()
            self._confirmations = iter(again)
            if again:
                self._progress.phase("Confirmation of the frontiers", len(again))
        return next(self._confirmations, None)

    def _next_test(self) -> FrontierTest | None:
        """The next trial that meets the test images, once all trials have ended."""
        if self._tests is None:
            trial_ids = self._to_be_tested()
            self._tests = iter([FrontierTest(self._trial(trial_id)) for trial_id in trial_ids])
            self._progress.phase("Test images", len(trial_ids))
        return next(self._tests, None)

    def _to_be_confirmed(self) -> list[Trial]:
        """The trials on a frontier with the fresh seeds that they still lack."""
        rows = self._table.read()
        wanted = to_be_confirmed(rows, self._sweep.objectives) if self._sweep.confirm else []
        again = confirmations([self._trial(id) for id in wanted], self._sweep.fresh_seeds)
        done = set(rows["trial_id"])
        return [trial for trial in again if trial.trial_id not in done]

    def _to_be_tested(self) -> list[str]:
        """The trials that the test images are still for."""
        wanted = to_be_tested(self._table.read(), self._sweep.objectives)
        tested = {id for id, row in self.rows.items() if row["test_accuracy"] is not None}
        return [trial_id for trial_id in wanted if trial_id not in tested]

    def _trial(self, trial_id: str) -> Trial:
        if trial_id in self._trials:
            return self._trials[trial_id]
        row = self.rows[trial_id]
        if row["phase"] == "confirmation":
            return confirmation(self._trial(str(row["confirms"])), int(row["seed"]))
        assert self.find_trial is not None
        return self.find_trial(trial_id)

    def _take_up(self, to_run_again: set[str]) -> dict[str, dict[str, Any]]:
        """The rows that stay; takes out of all tables what is to be run again.

        A row of trials.csv is written after the trial's rows of the other tables, so these may have
        some of a trial that has none, whose driver was killed in between.

        Args:
            to_run_again: the statuses of trials that are.
        """
        spans = self._table.read()[["started_at", "duration_s"]].itertuples(index=False)
        self.spans = [(str(started), float(duration)) for started, duration in spans]
        keep_rows(self._table.path, "status", lambda status: status not in to_run_again)
        rows = {
            str(row["trial_id"]): {str(name): present(value) for name, value in row.items()}
            for row in self._table.read().to_dict("records")
        }
        tested = {id for id, row in rows.items() if row["test_accuracy"] is not None}
        per_class = "multiplications_per_class.csv"
        keep_rows(self._folder / per_class, "trial_id", rows.__contains__)
        keep_rows(self._folder / f"test_{per_class}", "trial_id", tested.__contains__)
        Outbox(self._folder).forget_but(rows)
        for trial_id, row in rows.items():  # of a driver that was killed right there
            if row["status"] in ENDED_WELL:
                shutil.rmtree(self.workplace.checkpoints(trial_id), ignore_errors=True)
        return rows


def _rungs(sweep: Sweep, folder: Path) -> Rungs | None:
    if sweep.early_stopping is None:
        return None
    return Rungs(folder / "rungs", sweep.early_stopping, sweep.objectives)
