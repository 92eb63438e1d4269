"""The driver of a sweep: checks it, runs its jobs, and leaves its report.

`run_on_ray` proposes with Optuna, runs on Ray Tune and tells MLflow. `run_in_this_process` does the
same trials one after another with none of the three. Both leave the same folder behind.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from orchestrator.analysis.answer import last_lines
from orchestrator.analysis.comparison import compare_methods
from orchestrator.analysis.decision import decisions
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.time_spent import time_spent
from orchestrator.console.job_lines import show_end
from orchestrator.console.progress import Progress
from orchestrator.console.time_left import kind_of
from orchestrator.driver.checks import as_bad_input, check_methods, check_networks, load_shared
from orchestrator.driver.coordinator import Coordinator, Trials, Wait
from orchestrator.driver.plain_trials import PlainTrials
from orchestrator.jobs.work import do_job
from orchestrator.plan import Plan, make_plan, n_tries
from orchestrator.plan.jobs import INTERRUPTED, Job, Outcome, job_name, trial_of
from orchestrator.run_folder.folder import move_aside, report_is_current, sweep_id
from orchestrator.run_folder.recorder import ENDED_WELL, Recorder
from orchestrator.search.time_budget import TimeBudget
from orchestrator.sweep_file import Sweep, SweepFileError
from testbed.data import Splits

if TYPE_CHECKING:
    from orchestrator.search.proposer import Proposer
    from orchestrator.tracking.tracker import Tracker

ALL_COMPLETED, SOME_FAILED, STOPPED = 0, 1, 130  # exit statuses
LOOKING = "Looking at the images, networks and methods."


@dataclass(frozen=True)
class Resume:
    """How a run folder that is there already is resumed."""

    fresh: bool = False
    """Not at all: it is moved aside, and the sweep starts afresh."""
    retry_failed: bool = False
    """Trials that failed are run again."""


def run_on_ray(
    sweep: Sweep, folder: Path, data_root: Path, address: str | None, resume: Resume
) -> int:
    """Runs a sweep on a Ray cluster, or on a local one that is started for it.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if the data cannot be loaded or the cluster not be used, in which case no
            folder is left that was not there; or if no worker process can start.
    """
    from orchestrator.search.proposer import Proposer
    from orchestrator.search.study_storage import open_database, open_journal
    from orchestrator.tracking.tracker import Tracker

    plan = make_plan(sweep)
    with ExitStack() as stack:
        progress = Progress(plan.n_trials, planned=_planned(plan))

        def opened() -> tuple[Recorder, Proposer, Coordinator]:
            recorder = _open_recorder(plan, folder, data_root, progress, resume)
            storage = database or open_journal(folder / "studies.journal")
            prefix = f"{sweep.name} {sweep_id(folder)} " if database else ""
            searched = {id: row for id, row in recorder.rows.items() if row["phase"] == "search"}
            proposer = Proposer(
                plan.studies, sweep.objectives, sweep.search, storage, searched, prefix
            )
            return recorder, proposer, _coordinator(plan, proposer, recorder, progress)

        with as_bad_input():
            database = open_database(sweep.storage) if sweep.storage else None
            resumed = folder.exists() and not resume.fresh
            if resumed:
                recorder, proposer, coordinator = opened()
            nothing_left = resumed and coordinator.nothing_left
            if not nothing_left:  # a finished sweep needs neither its data nor Ray
                from orchestrator.tuning.connection import connected
                from orchestrator.tuning.places import Places

                progress.message(LOOKING)
                shared = load_shared(plan, data_root)
                check_networks(plan, shared)
                if not resumed:  # else what they refuse are failed trials of it
                    check_methods(plan, shared)
                stack.enter_context(connected(address))
                Places(sweep.resources)
            if not resumed:
                recorder, proposer, coordinator = opened()
        stack.enter_context(progress)
        tracker = Tracker(plan, folder, progress.message, recorder.rows.values())
        stack.callback(_say_where, tracker, progress)
        stack.enter_context(tracker)
        whole = nothing_left or _run_on_tune(
            plan, coordinator, proposer, recorder, tracker, progress, shared
        )
        return _finish(plan, folder, recorder, progress, tracker, whole)


def run_in_this_process(sweep: Sweep, folder: Path, data_root: Path, resume: Resume) -> int:
    """Runs a sweep of grids and fixed values, one trial after another.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if an option is a range, the data cannot be loaded, or a GPU is asked for
            that is not there; no folder is left then that was not there.
    """
    plan = make_plan(sweep)
    with as_bad_input():
        progress = Progress(PlainTrials(plan).left, planned=_planned(plan))
        if sweep.resources.gpus and not torch.cuda.is_available():
            raise ValueError("resources.gpus: torch finds no GPU here. Set it to 0.")
        progress.message(LOOKING)
        shared = load_shared(plan, data_root)
        check_networks(plan, shared)
        if resume.fresh or not folder.exists():
            check_methods(plan, shared)
    with progress:
        with as_bad_input():
            recorder = _open_recorder(plan, folder, data_root, progress, resume)
        coordinator = _coordinator(plan, PlainTrials(plan, recorder.rows), recorder, progress)
        whole = _run_here(coordinator, recorder, progress, shared)
        return _finish(plan, folder, recorder, progress, None, whole)


def _run_on_tune(
    plan: Plan,
    coordinator: Coordinator,
    proposer: "Proposer",
    recorder: Recorder,
    tracker: "Tracker",
    progress: Progress,
    shared: Mapping[str, Splits],
) -> bool:
    """Runs a sweep's jobs on Ray Tune; returns whether to their end."""
    from orchestrator.tuning.callbacks.display import DisplayCallback
    from orchestrator.tuning.callbacks.mlflow import MLflowCallback
    from orchestrator.tuning.callbacks.table import TableCallback
    from orchestrator.tuning.callbacks.worker_starts import NoWorkerError
    from orchestrator.tuning.scheduler import MultiObjectiveASHA
    from orchestrator.tuning.trainable import JOB, RUNG
    from orchestrator.tuning.tuner import run_jobs

    sweep = plan.sweep
    work = partial(
        do_job,
        workplace=recorder.workplace,
        early_stopping=sweep.early_stopping,
        latency="latency_ms" in sweep.objectives,
    )
    scheduler = MultiObjectiveASHA(
        sweep.objectives,
        sweep.early_stopping,
        time_attr=RUNG,
        rungs=proposer,
        name=lambda trial: (trial.config[JOB].study, trial.config[JOB].trial_id),
    )
    callbacks = (
        TableCallback(recorder),
        MLflowCallback(tracker, recorder),
        DisplayCallback(progress, recorder),
    )
    try:
        results = run_jobs(
            coordinator,
            work,
            callbacks,
            sweep.resources,
            scheduler=scheduler,
            shared=shared,
            expected=coordinator.n_jobs,
            name=sweep.name,
        )
    except NoWorkerError as error:
        raise SweepFileError([str(error)]) from error
    return results is not None


def _run_here(
    coordinator: Coordinator, recorder: Recorder, progress: Progress, shared: Mapping[str, Splits]
) -> bool:
    """Runs a sweep's jobs one after another; returns whether to their end."""

    def end(job: Job, outcome: Outcome) -> None:
        recorder.ended(job, outcome)
        trial = trial_of(job)
        show_end(progress, job, outcome, None if trial is None else recorder.row(trial, outcome))
        coordinator.tell(job, outcome)

    try:
        while (job := coordinator.ask()) is not None:
            assert not isinstance(job, Wait), "nothing runs that it could wait for"
            recorder.started(job)
            progress.trial_started(job_name(job))
            report = partial(progress.trial_report, job_name(job))
            try:
                outcome = do_job(job, shared, report, workplace=recorder.workplace)
            except KeyboardInterrupt:
                end(job, INTERRUPTED)
                raise
            end(job, outcome)
    except KeyboardInterrupt:  # in a job, or between two
        return False
    return True


def _open_recorder(
    plan: Plan, folder: Path, data_root: Path, progress: Progress, resume: Resume
) -> Recorder:
    """The recorder of a sweep that begins, or that is resumed in its folder."""
    if resume.fresh and folder.exists():
        progress.message(f"{folder} is kept as {move_aside(folder)}.")
    resumed = folder.exists()
    recorder = Recorder(plan, folder, data_root, resume.retry_failed)
    if resumed:
        done = len(recorder.rows)
        trials = "1 trial has" if done == 1 else f"{done:,} trials have"
        progress.message(f"Resuming {folder}: {trials} ended before.")
    return recorder


def _coordinator(plan: Plan, trials: Trials, recorder: Recorder, progress: Progress) -> Coordinator:
    hours = TimeBudget(plan.sweep.search.hours, time_spent(recorder.spans))
    return Coordinator(
        plan, trials, recorder.table.read, lambda: not hours.is_over(), progress.phase
    )


def _finish(
    plan: Plan,
    folder: Path,
    recorder: Recorder,
    progress: Progress,
    tracker: "Tracker | None",
    whole: bool,
) -> int:
    """Writes the report, of the whole sweep or of what there is, if that is not what it shows.

    Returns:
        The exit status.
    """
    recorder.fill_tests()
    if not report_is_current(folder):
        from orchestrator.report import write_report  # seconds of imports

        write_report(folder)
    result = SweepResult.read(folder)
    found = decisions(result)
    for line in last_lines(result, found):
        progress.message(line)
    progress.message(f"Report: {folder / 'report.html'}")
    if tracker:
        tracker.finish(compare_methods(result.trials, result.objectives), found)
    if not whole:
        return STOPPED
    return ALL_COMPLETED if recorder.statuses <= ENDED_WELL else SOME_FAILED


def _planned(plan: Plan) -> Mapping[str, float]:
    """The search's trials by kind, for the time that is left."""
    counts: dict[str, float] = {}
    for study in plan.studies:
        kind = kind_of(study.name)
        counts[kind] = counts.get(kind, 0) + n_tries(study, plan.sweep.search)
    return counts


def _say_where(tracker: "Tracker", progress: Progress) -> None:
    if tracker.where:
        progress.message(tracker.where)
