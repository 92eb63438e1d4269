"""What the console says of a job that has ended."""

from collections.abc import Mapping
from typing import Any

from orchestrator.console.progress import Progress
from orchestrator.plan import DenseNetwork, SharedStage
from orchestrator.plan.jobs import (
    Job,
    Lost,
    Outcome,
    StoredResult,
    TestResult,
    TrialResult,
    job_name,
    trial_of,
)


def show_end(progress: Progress, job: Job, outcome: Outcome, row: Mapping[str, Any] | None) -> None:
    """Shows the end of a job.

    Args:
        row: of trials.csv, if the job ran a trial.
    """
    name = job_name(job)
    if isinstance(outcome, TrialResult | StoredResult):
        for text in outcome.warnings:
            progress.message(f"{name}: {text}")
    if trial_of(job) is not None:
        assert row is not None
        progress.trial_done(row)
        return
    status, text = "completed", f"{name}  is there"
    if isinstance(outcome, Lost):
        status, text = outcome.status, f"{name}  {outcome.status}: {outcome.error.splitlines()[0]}"
    elif isinstance(outcome, TestResult):
        text = f"{name}  test {outcome.accuracy:.3f}"
    progress.job_done(name, status, text, counts=not isinstance(job, DenseNetwork | SharedStage))
