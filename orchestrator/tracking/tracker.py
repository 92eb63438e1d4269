"""What a sweep tells MLflow, without ever waiting for it.

Everything is sent by one thread of the driver: importing MLflow, making its database and writing a
trial take about 3 s, 2 s and 0.1 s, and more on a busy machine. What MLflow does not take stays in
the run folder's outbox, is tried again while the sweep runs, and then by the next run of the same
command.
"""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.formatting import without_password
from orchestrator.run_folder.folder import sweep_id
from orchestrator.run_folder.outbox import Outbox
from orchestrator.tracking.experiment import SQLITE, Experiment, tracking_uri
from orchestrator.tracking.view import address

FAILURES_IN_A_ROW = 3  # of different runs, as a rule: then it is MLflow that is away
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0  # before MLflow is tried again
PATIENCE_S = 60.0  # for a server to take the next run, once all trials have ended
LOCAL_PATIENCE_S = 600.0  # for a file of ours: it may be slow, but is never away


@dataclass(frozen=True)
class _Task:
    send: Callable[[Experiment, bool], None]
    first: bool = True
    """Whether it is sent for the first time."""


class Tracker:
    """Tells MLflow of one sweep, in the background. Use as a context manager."""

    def __init__(
        self,
        sweep_name: str,
        output: Path,
        warn: Callable[[str], None],
        goes_on: bool = False,
        methods: Sequence[str] = (),
    ) -> None:
        """Starts writing to MLFLOW_TRACKING_URI, or else to `OUTPUT/mlflow.db`.

        Args:
            output: the folder of all sweeps, that also gets the artifacts of a local database.
            warn: told in one sentence when MLflow fails, from another thread.
            goes_on: whether the sweep was begun before. What its outbox holds is sent first.
            methods: the sweep's, in its order, whose runs get the colours of the report.
        """
        self._output = output.resolve()
        self._output.mkdir(parents=True, exist_ok=True)
        self._folder = self._output / sweep_name
        self._uri = tracking_uri(output)
        self._shown = without_password(self._uri)
        self._warn = warn
        self._open = partial(Experiment, sweep_name, self._uri, self._output, goes_on, methods)
        self._started = time.time()
        self._outbox = Outbox(self._folder)
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._said = False
        self._handled = 0  # tasks
        self._experiment_id: str | None = None
        self._closing = threading.Event()
        self._tasks.put(_Task(lambda experiment, _: experiment.write_view()))
        for trial_id in self._outbox.trials():
            self.send(trial_id)
        self._thread = threading.Thread(target=self._write, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(
        self,
        row: Mapping[str, Any],
        reports: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any],
    ) -> None:
        """Keeps one trial that has ended, to be sent.

        Args:
            row: its row of trials.csv.
            reports: what it reported, in order; `epoch`, or else `round`, is the step of a report's
                other figures, and `timestamp` (Unix seconds) when it came.
            settings: further settings of the trial, nested as in the sweep file.
        """
        self._outbox.put(row, reports, settings)
        self._outbox.report_is_due = True

    def send(self, trial_id: str) -> None:
        """Sends a trial that was kept."""

        def write(experiment: Experiment, first: bool) -> None:
            letter = self._outbox.get(trial_id)
            if letter is not None:
                experiment.write_trial(sweep_id(self._folder), letter, first)
                self._outbox.sent(trial_id)

        self._tasks.put(_Task(write))

    def finish(self, comparison: pd.DataFrame) -> None:
        """Sends the report, as a run named `frontier`, unless MLflow has it.

        Args:
            comparison: of `compare_methods`; its figures become metrics.
        """

        def write(experiment: Experiment, first: bool) -> None:
            identity = sweep_id(self._folder)
            experiment.write_frontier(identity, self._started, self._folder, comparison)
            self._outbox.report_is_due = False

        if self._outbox.report_is_due:
            self._tasks.put(_Task(write))

    @property
    def where(self) -> str | None:
        """How to look at the sweep, for a person; None where MLflow lacks some of it."""
        if self._experiment_id is None or len(self._outbox):
            return None
        if self._uri.startswith("http"):
            return f"MLflow: {address(self._shown, self._experiment_id)}"
        return (
            f"MLflow: mlflow ui --backend-store-uri {shlex.quote(self._shown)}, then "
            f"{address('http://127.0.0.1:5000', self._experiment_id)}"
        )

    def close(self, patience_s: float | None = None) -> None:
        """Waits until everything is written, or nothing was for so long (None: see above)."""
        if patience_s is None:
            patience_s = LOCAL_PATIENCE_S if self._uri.startswith(SQLITE) else PATIENCE_S
        self._closing.set()
        handled = -1
        while self._thread.is_alive() and self._handled > handled:
            handled = self._handled
            self._thread.join(patience_s)
        if self._thread.is_alive():
            self._warn(f"MLflow at {self._shown} took no run within {patience_s:.0f} s; giving up.")
        if left := len(self._outbox):
            self._warn(
                f"MLflow at {self._shown} lacks {left} of this sweep's runs. They are kept in "
                f"{self._outbox.path}; the same command sends them."
            )

    def _write(self) -> None:
        """The thread: sends what there is until it is closed, and then what is left."""
        experiment: Experiment | None = None
        task: _Task | None = None
        failures, pause_s = 0, FIRST_PAUSE_S
        while not (self._closing.is_set() and self._tasks.empty() and experiment):
            try:
                if experiment is None:
                    experiment = self._open()
                    self._experiment_id = experiment.id
                task = self._tasks.get(timeout=0.2)
                task.send(experiment, task.first)
                failures, pause_s = 0, FIRST_PAUSE_S
            except queue.Empty:
                continue
            except Exception as error:  # whatever MLflow raises, no trial may be lost for it
                self._say(error)
                failures += 1
                if task is not None:
                    self._tasks.put(replace(task, first=False))
                if failures % FAILURES_IN_A_ROW == 0:
                    if self._closing.is_set():
                        return
                    self._closing.wait(pause_s)
                    experiment, pause_s = None, min(2 * pause_s, LONGEST_PAUSE_S)
            task = None
            self._handled += 1

    def _say(self, error: Exception) -> None:
        """Says the first failure."""
        if not self._said:
            self._said = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._warn(
                f"MLflow at {self._shown} fails ({reason}). The trials go on; what it lacks is "
                "kept, and sent when it is back."
            )
