"""A worker's whole work: one job, of whatever kind, to its outcome."""

from collections.abc import Mapping

from orchestrator.formatting import error_text
from orchestrator.jobs.dense import obtain_dense
from orchestrator.jobs.final_test import final_test
from orchestrator.jobs.trial import make_shared_stage, run_trial
from orchestrator.jobs.warnings import collected
from orchestrator.plan import SharedStage, Trial
from orchestrator.plan.jobs import (
    AtRungs,
    DiskIsFull,
    FailedTrial,
    FinalTest,
    Job,
    Lost,
    Outcome,
    StoredResult,
    TellRung,
    job_name,
    splits_key,
)
from orchestrator.run_folder.atomic_files import FULL_DISK
from orchestrator.run_folder.workplace import Workplace
from orchestrator.sweep_file import EarlyStopping
from testbed.data import Splits
from testbed.machine import set_threads, trim_malloc, tune_malloc
from testbed.training import Report


def do_job(
    job: Job,
    shared: Mapping[str, Splits],
    report: Report,
    tell_rung: TellRung | None = None,
    *,
    workplace: Workplace,
    early_stopping: EarlyStopping | None = None,
    latency: bool = False,
) -> Outcome:
    """Does a job. An error of its own is its outcome, and nothing else is.

    Args:
        shared: the splits of every data set and seed, by `splits_key`.
        report: gets every epoch's and round's figures.
        tell_rung: told when a trial comes to a rung; without it no trial is stopped early.
        early_stopping: where the rungs are.
        latency: whether it is an objective.
    """
    if isinstance(job, FailedTrial):
        return Lost("failed", job.error)
    set_threads(workplace.resources.threads or workplace.resources.cpus)
    tune_malloc()
    subject = job.trial if isinstance(job, FinalTest | SharedStage) else job
    splits = shared[splits_key(subject.data, subject.seed)]
    try:
        if isinstance(job, FinalTest):
            return final_test(job.trial, splits, workplace)
        if isinstance(job, Trial):
            rungs = None
            if early_stopping is not None and tell_rung is not None:
                rungs = AtRungs(early_stopping, latency, tell_rung)
            return run_trial(job, splits, workplace, report, rungs)
        warnings: list[str] = []
        with collected(warnings):
            if isinstance(job, SharedStage):
                make_shared_stage(job.trial, splits, workplace, report)
            else:
                obtain_dense(job, splits, workplace, report)
        return StoredResult(tuple(warnings))
    except Exception as error:  # what it means for trials is the coordinator's
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return DiskIsFull(error.errno, f"{error.strerror} (for {job_name(job)})")
        return Lost("failed", error_text(error))
    finally:
        trim_malloc()
