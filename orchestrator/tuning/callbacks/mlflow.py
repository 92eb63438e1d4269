"""The callback that tells MLflow of each trial, without ever waiting for it."""

from typing import Any

from orchestrator.plan.jobs import Outcome, trial_of
from orchestrator.run_folder.recorder import Recorder
from orchestrator.run_folder.trial_files import read_reports
from orchestrator.tracking.tracker import Tracker
from orchestrator.tuning.callbacks.job_callback import JobCallback


class MLflowCallback(JobCallback):
    """Keeps a trial for MLflow before its row is written, and sends it afterwards.

    It stands before `TableCallback`: so no trial that has a row is missing from MLflow in the end.
    """

    def __init__(self, tracker: Tracker, recorder: Recorder) -> None:
        super().__init__()
        self._tracker, self._recorder = tracker, recorder

    def job_ended(self, job: Any, outcome: Outcome) -> None:
        trial = trial_of(job)
        if trial is not None:
            reports = read_reports(self._recorder.workplace.reports(trial.trial_id))
            settings = trial.model_dump(mode="json", include={"data", "training", "fine_tuning"})
            settings["backbone"] = trial.backbone_options  # as the sweep file has them
            self._tracker.keep(self._recorder.row(trial, outcome), reports, settings)

    def job_told(self, job: Any) -> None:
        if (trial := trial_of(job)) is not None:
            self._tracker.send(trial.trial_id)
