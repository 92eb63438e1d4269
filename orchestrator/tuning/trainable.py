"""The trainable: one job of a sweep, in a worker process of Ray Tune's."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray._raylet import setproctitle  # type: ignore[attr-defined]
from ray.exceptions import RayError

from orchestrator.formatting import error_text
from orchestrator.plan.jobs import Lost, Outcome, TellRung, TrialResult, WorkerStart
from testbed.training import Report

JOB = "job"
"""In a trial's config: what it runs."""
REPORTS, OUTCOME, RUNG, DONE = "reports", "outcome", "rung", "done"
"""In a result: a list of what the job reported, how it ended, and the epochs before its rung. At a
rung the outcome is that of a trial which is stopped there, and `DONE` is Ray Tune's to set."""

REPORT_PERIOD_S = 1.0
"""A job's reports travel to the driver once in this time, and when it comes to a rung or ends. The
job waits meanwhile: some hundredths of a second on a busy machine."""

Work = Callable[[Any, Mapping[str, Any], Report, TellRung], Outcome]
"""Does a job: gets the job, what is shared, where progress goes, and whom to tell of a rung.

It is a function at the top of a module, or a `functools.partial` of one. Workers import it from the
installed packages or from the directory in which the sweep was started.
"""


def run_job(config: Mapping[str, Any], *, work: Work, shared: Mapping[str, Any]) -> None:
    """Runs the job in `config`, and reports its outcome to Ray Tune.

    What goes wrong in the job is an outcome too, so that its process lives on and Ray Tune does not
    try it again.

    Raises:
        RayError: if an object of Ray's was lost, with its node say: no fault of the job's.
    """
    job, results = config[JOB], _Results()
    try:
        outcome = None
        if not isinstance(job, WorkerStart):
            outcome = _outcome(work, job, shared, results)
        results.send({OUTCOME: outcome, DONE: True})
    except _StoppedError:
        sys.exit(0)


def _outcome(work: Work, job: Any, shared: Mapping[str, Any], results: "_Results") -> Outcome:
    try:
        return work(job, shared, results.report, results.tell_rung)
    except RayError:
        raise
    except (Exception, SystemExit) as error:  # a job that leaves takes no worker with it
        return Lost("failed", error_text(error))


class _StoppedError(BaseException):
    """Ray Tune stops this trial. No method's handler of exceptions may keep it."""


class _Results:
    """What a job tells Ray Tune, some reports at a time."""

    def __init__(self) -> None:
        self._reports: list[dict[str, float]] = []
        self._go_on()

    def report(self, values: Mapping[str, float]) -> None:
        self._reports.append(dict(values))
        if time.monotonic() - self._sent >= REPORT_PERIOD_S:
            self.send({})

    def tell_rung(self, epochs: int, values: Mapping[str, float], stopped: TrialResult) -> None:
        self.send({**values, RUNG: epochs, OUTCOME: stopped})

    def send(self, result: dict[str, Any]) -> None:
        """Returns when the driver has it and wants the job to go on."""
        reports, self._reports = self._reports, []
        try:
            tune.report({REPORTS: reports, **result})
        except SystemExit as stop:
            raise _StoppedError from stop
        self._go_on()

    def _go_on(self) -> None:
        """The process has the trial's name in `top` and in Ray's dashboard, until Ray renames it
        for its next call."""
        self._sent = time.monotonic()
        setproctitle(f"ray::{tune.get_context().get_trial_name()}")
