"""Progress of a sweep, as a person sees it while it runs.

In a terminal one live display: trials done, running and failed, the time left, what each core does,
and every method's Pareto front so far (see `live_display`). Elsewhere, in a log file or a CI job,
one plain line for each trial that ends, and one for how it stands where none does for a while.
"""

import math
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from orchestrator.analysis.asked_budget import asked_of, is_missed
from orchestrator.console.live_display import Standing, display, frontier_reached, in_a_line
from orchestrator.console.time_left import Durations
from orchestrator.formatting import accuracy, duration, millions, percent

SILENCE_S = 300  # in a log; a trial of hours would look as if it hung


class Progress:
    """The progress of a sweep on a console. Use as a context manager; threads may share it."""

    def __init__(
        self,
        total: float,
        console: Console | None = None,
        planned: Mapping[str, float] | None = None,
    ) -> None:
        """Starts at nought of `total` trials, infinite if their number is not known.

        Args:
            console: standard output if None.
            planned: the search's trials; see `Durations`.
        """
        self.console = console or Console(highlight=False)
        self._lock = threading.RLock()
        self._standing = Standing(total=total, durations=Durations(planned or {}))
        self._last_line = monotonic()
        self._live = Live(
            console=self.console,
            get_renderable=self._display,
            refresh_per_second=2,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self.console.is_terminal and self._standing.frontiers:
            self.console.print(frontier_reached(self._standing, self.console.width))

    def phase(self, text: str, total: float) -> None:
        """A new part of the sweep begins, of `total` trials, infinite if that is not known."""
        with self._lock:
            self._standing.begin_part(text, total)
        if not self.console.is_terminal:
            self.message(text)

    def message(self, text: str) -> None:
        """Something worth reading, left on the screen."""
        self._print(escape(text))

    def trial_started(self, trial_id: str) -> None:
        with self._lock:
            self._standing.start(trial_id)

    def trial_report(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """What a running trial says of itself; ignored once it has ended."""
        with self._lock:
            self._standing.said(trial_id, metrics)
            if not self.console.is_terminal and monotonic() - self._last_line >= SILENCE_S:
                self.message(in_a_line(self._standing))

    def job_done(self, name: str, status: str, text: str, *, counts: bool) -> None:
        """A job that is no trial has ended; `text` is its line.

        Args:
            counts: whether it is one of this part's, as dense networks and shared stages are not.
        """
        with self._lock:
            if counts:
                self._standing.end(name, status)
            else:
                self._standing.stop(name)
        if not self.console.is_terminal or status != "completed":
            self._print_done(text) if counts else self.message(text)

    def trial_done(self, row: Mapping[str, Any]) -> None:
        """A trial has ended; `row` is its row of trials.csv."""
        with self._lock:
            self._standing.end(row["trial_id"], row["status"])
            if row["status"] == "completed" and row.get("phase") != "confirmation":
                point = _share(row), _number(row, "val_accuracy")
                self._standing.add_point(row["method"], point)
        if not self.console.is_terminal or row["status"] not in ("completed", "stopped_early"):
            self._print_done(describe(row))

    def _print_done(self, text: str) -> None:
        total = self._standing.total
        width, of = len(str(total)), "" if total == math.inf else f"/{total}"
        self._print(rf"\[{self._standing.ended.total():{width}}{of}] {escape(text)}")

    def _print(self, markup: str) -> None:
        self._last_line = monotonic()
        self.console.print(markup, soft_wrap=True)  # a log's lines are not cut to a width

    def _display(self) -> RenderableType:
        with self._lock:
            return display(self._standing, self.console.width, self.console.height)


def describe(row: Mapping[str, Any]) -> str:
    """One line of a trial that has ended: its figures, or the first line of its error."""
    took = duration(_number(row, "duration_s"))
    if row["status"] == "stopped_early":
        return (
            f"{row['trial_id']}  stopped early after {row['epochs_spent']} epochs at val "
            f"{accuracy(_number(row, 'val_accuracy'))}  {took}"
        )
    if row["status"] != "completed":
        reason = (str(row.get("error") or "").splitlines() or ["no reason given"])[0]
        return f"{row['trial_id']}  {row['status']}: {reason}  {took}"
    share, budget = _share(row), asked_of(row)
    missed = f", asked for {percent(budget)}" if is_missed(share, budget) else ""
    return (
        f"{row['trial_id']}  val {accuracy(_number(row, 'val_accuracy'))}  "
        f"{millions(_number(row, 'multiplications'))} multiplications "
        f"({percent(share)} of dense{missed})  {took}"
    )


def _number(row: Mapping[str, Any], column: str, missing: float = math.nan) -> float:
    value = row.get(column)
    return missing if value is None else float(value)


def _share(row: Mapping[str, Any]) -> float:
    """Multiplications as a share of the dense network's; NaN where either is missing."""
    dense = _number(row, "dense_multiplications")
    return _number(row, "multiplications") / dense if dense else math.nan
