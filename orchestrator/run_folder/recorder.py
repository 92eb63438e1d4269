"""The recorder of a sweep: what ran, in the tables of its run folder."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.methods import method_class
from orchestrator.plan import Plan, Trial
from orchestrator.plan.jobs import (
    DiskIsFull,
    FinalTest,
    Job,
    Lost,
    Outcome,
    TestResult,
    TrialResult,
    trial_of,
)
from orchestrator.run_folder.folder import begin, note_sweep
from orchestrator.run_folder.trial_row import known_columns
from orchestrator.run_folder.trials_table import (
    HELD_BY_COLUMNS,
    TrialsTable,
    append_multiplications_per_class,
    is_missing,
    keep_rows,
    table_columns,
    write_images,
)
from orchestrator.run_folder.workplace import Workplace

ENDED_WELL = {"completed", "stopped_early"}


class Recorder:
    """The tables of one run folder."""

    def __init__(
        self, plan: Plan, folder: Path, data_root: Path, retry_failed: bool = False
    ) -> None:
        """Makes the run folder, or resumes the one that is there: see `check_resumable`.

        Args:
            retry_failed: whether trials that failed are to be run again, as stopped ones are.

        Raises:
            ValueError: if a table that is there is damaged.
        """
        sweep = plan.sweep
        if folder.exists():
            note_sweep(folder, sweep)
        else:
            begin(folder, sweep)
        self.workplace = Workplace(
            folder=folder.resolve(),
            dense=(folder.parent / "dense").resolve(),
            data_root=data_root.resolve(),
            resources=sweep.resources,
        )
        self._folder = folder
        methods = {name: method_class(name) for name in sweep.methods}
        self._varied = [path for path in sweep.varied if path not in HELD_BY_COLUMNS]
        self.table = TrialsTable(folder / "trials.csv", table_columns(methods, self._varied))
        self.spans: list[tuple[str, float]] = []
        """When trials ran in earlier runs, also those that were stopped: start, seconds."""
        self.rows = self._resumed({"stopped", "failed"} if retry_failed else {"stopped"})
        """Of the trials that ended in earlier runs, by trial_id; a missing value is None."""
        self.statuses = {row["status"] for row in self.rows.values()}
        """Of all trials and tests that have ended."""
        self._started: dict[str, datetime] = {}
        self._tested: dict[str, dict[str, float]] = {}

    def started(self, job: Job) -> None:
        """A job starts, or starts again."""
        if (trial := trial_of(job)) is not None:
            self._started[trial.trial_id] = datetime.now(UTC)

    def row(self, trial: Trial, outcome: Outcome) -> dict[str, Any]:
        """The row of trials.csv of a trial that has ended."""
        if isinstance(outcome, TrialResult):
            row = outcome.row
        else:
            assert isinstance(outcome, Lost)
            started = self._started.get(trial.trial_id, datetime.now(UTC))
            lasted = (datetime.now(UTC) - started).total_seconds()
            row = known_columns(trial, started) | {"status": outcome.status}
            row |= {"error": outcome.error, "duration_s": lasted}
        return row | {path: trial.option(path) for path in self._varied}

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended. A trial's row says that all its other files are there.

        Raises:
            OSError: if the disk is full, there or here. The job is done again when the sweep is
                resumed.
        """
        if isinstance(outcome, DiskIsFull):
            raise OSError(outcome.errno, outcome.text)
        trial = trial_of(job)
        if trial is not None:
            self._keep_trial(trial, outcome)
        elif isinstance(job, FinalTest):
            self._keep_test(job.trial.trial_id, outcome)

    def fill_tests(self) -> None:
        """Writes what the final tests found into the trials' rows."""
        if self._tested:
            self.table.fill(self._tested)

    def _keep_trial(self, trial: Trial, outcome: Outcome) -> None:
        trial_id, row = trial.trial_id, self.row(trial, outcome)
        if isinstance(outcome, TrialResult):
            if outcome.per_class:
                path = self._folder / "multiplications_per_class.csv"
                append_multiplications_per_class(path, trial_id, outcome.per_class)
            if outcome.images:
                write_images(self._folder, trial_id, *outcome.images)
        self.table.append(row)
        self.statuses.add(row["status"])
        if row["status"] in ENDED_WELL:
            shutil.rmtree(self.workplace.checkpoints(trial_id), ignore_errors=True)

    def _keep_test(self, trial_id: str, outcome: Outcome) -> None:
        if isinstance(outcome, Lost):
            self.statuses.add(outcome.status)  # the row lacks an accuracy
            return
        assert isinstance(outcome, TestResult)
        self._tested[trial_id] = {
            "test_accuracy": outcome.accuracy,
            "test_multiplications": outcome.multiplications,
            "test_images": outcome.images,
        }
        path = self._folder / "test_multiplications_per_class.csv"
        append_multiplications_per_class(path, trial_id, outcome.per_class)

    def _resumed(self, to_run_again: set[str]) -> dict[str, dict[str, Any]]:
        """The rows that stay; takes out of all tables what is to be run again.

        A row of trials.csv is written after the trial's rows of the other tables, so these may have
        some of a trial that has none, whose driver was killed in between.

        Args:
            to_run_again: the statuses of trials that are.
        """
        spans = self.table.read()[["started_at", "duration_s"]].itertuples(index=False)
        self.spans = [(str(started), float(duration)) for started, duration in spans]
        keep_rows(self.table.path, "status", lambda status: status not in to_run_again)
        rows = {
            str(row["trial_id"]): {
                str(name): None if is_missing(value) else value for name, value in row.items()
            }
            for row in self.table.read().to_dict("records")
        }
        tested = {id for id, row in rows.items() if row["test_accuracy"] is not None}
        per_class = "multiplications_per_class.csv"
        keep_rows(self._folder / per_class, "trial_id", rows.__contains__)
        keep_rows(self._folder / f"test_{per_class}", "trial_id", tested.__contains__)
        for trial_id, row in rows.items():  # of a driver that was killed right there
            if row["status"] in ENDED_WELL:
                shutil.rmtree(self.workplace.checkpoints(trial_id), ignore_errors=True)
        return rows
