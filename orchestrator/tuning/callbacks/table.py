"""The callback that keeps what ran in the tables of the run folder."""

from typing import Any

from orchestrator.plan.jobs import Outcome
from orchestrator.run_folder.recorder import Recorder
from orchestrator.tuning.callbacks.job_callback import JobCallback


class TableCallback(JobCallback):
    """Writes a row of trials.csv for each trial that ends."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def job_started(self, job: Any) -> None:
        self._recorder.started(job)

    def job_ended(self, job: Any, outcome: Outcome) -> None:
        self._recorder.ended(job, outcome)
