"""The callback that tells MLflow of each trial, without ever waiting for it."""

from typing import Any

from orchestrator.plan.jobs import Outcome, trial_of
from orchestrator.run_folder.recorder import Recorder
from orchestrator.tracking.tracker import Tracker
from orchestrator.tuning.callbacks.job_callback import JobCallback


class MLflowCallback(JobCallback):
    """Sends a trial whose row is written: it stands after `TableCallback`."""

    def __init__(self, tracker: Tracker, recorder: Recorder) -> None:
        super().__init__()
        self._tracker, self._recorder = tracker, recorder

    def job_ended(self, job: Any, outcome: Outcome) -> None:
        if (trial := trial_of(job)) is not None:
            self._tracker.send(self._recorder.row(trial, outcome))
