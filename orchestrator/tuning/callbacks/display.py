"""The callback that shows the progress of a sweep on a console."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.console.job_lines import show_end
from orchestrator.console.progress import Progress
from orchestrator.plan.jobs import Outcome, job_name, trial_of
from orchestrator.run_folder.recorder import Recorder
from orchestrator.tuning.callbacks.job_callback import JobCallback


class DisplayCallback(JobCallback):
    """Shows what starts, reports, starts again and ends."""

    def __init__(self, progress: Progress, recorder: Recorder) -> None:
        super().__init__()
        self._progress, self._recorder = progress, recorder

    def job_started(self, job: Any) -> None:
        self._progress.trial_started(job_name(job))

    def job_reported(self, job: Any, reports: Sequence[Mapping[str, float]]) -> None:
        for values in reports:
            self._progress.trial_report(job_name(job), values)

    def job_restarts(self, job: Any, reason: str) -> None:
        why = reason.splitlines()[0]
        self._progress.message(f"{job_name(job)} resumes in another process. {why}")

    def job_ended(self, job: Any, outcome: Outcome) -> None:
        trial = trial_of(job)
        row = None if trial is None else self._recorder.row(trial, outcome)
        show_end(self._progress, job, outcome, row)
