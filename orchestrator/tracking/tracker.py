"""What a sweep tells MLflow, without ever waiting for it.

Everything is sent by one thread of the driver: importing MLflow, making its database and writing a
trial take about 3 s, 2 s and 0.1 s, and more on a busy machine. What MLflow does not take is tried
again while the sweep runs, and then by the next run of the same command, which asks MLflow what it
has of the rows of trials.csv.
"""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import methodcaller
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.decision import Decision
from orchestrator.formatting import without_password
from orchestrator.plan import Plan
from orchestrator.tracking.experiment import SQLITE, Experiment, tracking_uri
from orchestrator.tracking.view import address

FAILURES_IN_A_ROW = 3  # of different runs, as a rule: then it is MLflow that is away
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0  # before MLflow is tried again
PATIENCE_S = 60.0  # for a server to take the next run, once all trials have ended
LOCAL_PATIENCE_S = 600.0  # for a file of ours: it may be slow, but is never away


class Tracker(AbstractContextManager["Tracker"]):
    """Tells MLflow of one sweep, in the background. Use as a context manager."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        warn: Callable[[str], None],
        rows: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Starts writing to MLFLOW_TRACKING_URI, or else to `mlflow.db` beside the run folder.

        Args:
            folder: the run folder.
            warn: told in one sentence when MLflow fails, from another thread.
            rows: of trials.csv, of earlier runs. Those that MLflow lacks are sent first.
        """
        self._plan, self._folder, self._warn = plan, folder.resolve(), warn
        self._uri = tracking_uri(folder.parent)
        self._shown = without_password(self._uri)
        self._started = time.time()
        self._tasks: queue.Queue[Callable[[Experiment], None]] = queue.Queue()
        self._said = False
        self._handled = 0  # tasks
        self._experiment_id: str | None = None
        self._closing = threading.Event()
        for row in rows:
            self.send(row)
        self._resumed = self._lacking > 0
        self._thread = threading.Thread(target=self._write, name="mlflow", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, row: Mapping[str, Any]) -> None:
        """Sends a trial that has ended, by its row of trials.csv."""
        self._tasks.put(methodcaller("write_trial", row))

    def finish(self, comparison: pd.DataFrame, found: Sequence[Decision] = ()) -> None:
        """Sends the report, as a run named `frontier`; see `Experiment.write_frontier`."""
        self._tasks.put(methodcaller("write_frontier", self._started, comparison, found))

    @property
    def _lacking(self) -> int:
        """How many runs MLflow lacks."""
        return self._tasks.unfinished_tasks

    @property
    def where(self) -> str | None:
        """How to look at the sweep, for a person; None where MLflow lacks some of it."""
        if self._experiment_id is None or self._lacking:
            return None
        pages, serve = self._shown, ""
        if not self._uri.startswith("http"):
            serve = f"mlflow ui --backend-store-uri {shlex.quote(pages)}, then "
            pages = "http://127.0.0.1:5000"
        return f"MLflow: {serve}{address(pages, self._experiment_id)}"

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
        if left := self._lacking:
            lacks = "may lack" if self._resumed and self._experiment_id is None else "lacks"
            self._warn(
                f"MLflow at {self._shown} {lacks} {left} of this sweep's runs; the same command "
                "sends them."
            )

    def _write(self) -> None:
        """The thread: sends what there is until it is closed, and then what is left.

        MLflow is imported for the first task, when workers have started: they need the cores.
        """
        experiment: Experiment | None = None
        failures, pause_s = 0, FIRST_PAUSE_S
        while not (self._closing.is_set() and self._tasks.empty()):
            try:
                task = self._tasks.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                experiment = experiment or Experiment(self._plan, self._folder, self._uri)
                self._experiment_id = experiment.id
                task(experiment)
                self._tasks.task_done()
                failures, pause_s = 0, FIRST_PAUSE_S
            except Exception as error:  # whatever MLflow raises, no trial may be lost for it
                self._say(error)
                experiment = None  # it is asked again what it has
                failures += 1
                self._tasks.put(task)
                self._tasks.task_done()  # it is another one now
                if failures % FAILURES_IN_A_ROW == 0:
                    if self._closing.is_set():
                        return
                    self._closing.wait(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._handled += 1

    def _say(self, error: Exception) -> None:
        """Says the first failure."""
        if not self._said:
            self._said = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._warn(
                f"MLflow at {self._shown} fails ({reason}). The trials go on; what it lacks is "
                "sent when it is back."
            )
