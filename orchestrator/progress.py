"""What a person sees while a sweep runs.

In a terminal one live display: trials done, running and failed, the time left, and the best
accuracies so far. Elsewhere, in a log file or a CI job, one plain line for each trial that ends.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.frontier import BUDGETS
from orchestrator.notation import accuracy, duration, millions, percent


class Progress:
    """The progress of a sweep on a console. Use as a context manager; threads may share it."""

    def __init__(self, total: float, console: Console | None = None) -> None:
        """Starts at nought of `total` trials, infinite if their number is not known.

        `console` is standard output if None.
        """
        self.console = console or Console(highlight=False)
        self._lock = threading.RLock()
        self._running: dict[str, dict[str, float]] = {}  # trial_id -> what it last reported
        self._ended: Counter[str] = Counter()  # status -> trials of this phase
        self._best: dict[str, dict[float, float]] = {}  # method -> budget -> val_accuracy
        self._tries: Counter[str] = Counter()  # method -> completed trials
        self._title, self._total, self._since = "", total, time.monotonic()
        self._live = Live(
            console=self.console,
            get_renderable=self._display,
            refresh_per_second=2,
            transient=True,
        )

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def phase(self, text: str, total: float) -> None:
        """A new part of the sweep begins, of `total` trials, infinite if that is not known."""
        with self._lock:
            self._title, self._total, self._since = text, total, time.monotonic()
            self._ended.clear()
        if not self.console.is_terminal:
            self.message(text)

    def message(self, text: str) -> None:
        """Something worth reading, left on the screen."""
        self._print(escape(text))

    def trial_started(self, trial_id: str) -> None:
        with self._lock:
            self._running[trial_id] = {}

    def trial_report(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """What a running trial says of itself; ignored once it has ended."""
        with self._lock:
            self._running.get(trial_id, {}).update(metrics)

    def test_done(self, name: str, status: str, text: str) -> None:
        """A test has ended; `text` is its line."""
        with self._lock:
            self._running.pop(name, None)
            self._ended[status] += 1
        if not self.console.is_terminal or status != "completed":
            self._print_done(text)

    def dense_done(self, name: str, status: str, text: str) -> None:
        """A dense network has ended, which is none of the phase's trials; `text` is its line."""
        with self._lock:
            self._running.pop(name, None)
        if not self.console.is_terminal or status != "completed":
            self.message(text)

    def trial_done(self, row: Mapping[str, Any]) -> None:
        """A trial has ended; `row` is its row of trials.csv."""
        with self._lock:
            self._running.pop(row["trial_id"], None)
            self._ended[row["status"]] += 1
            if row["status"] == "completed":
                self._tries[row["method"]] += 1
                self._keep_best(row)
        if not self.console.is_terminal or row["status"] not in ("completed", "stopped_early"):
            self._print_done(describe(row))

    def _print_done(self, text: str) -> None:
        width = len(str(self._total))
        of = "" if self._total == math.inf else f"/{self._total}"
        self._print(rf"\[{self._ended.total():{width}}{of}] {escape(text)}")

    def _keep_best(self, row: Mapping[str, Any]) -> None:
        best = self._best.setdefault(row["method"], {})
        for budget in (*BUDGETS, math.inf):
            if _share(row) <= budget or budget == math.inf:
                best[budget] = max(best.get(budget, 0.0), _number(row, "val_accuracy", 0.0))

    def _print(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)  # a log's lines are not cut to a width

    def _display(self) -> RenderableType:
        with self._lock:
            return Group(*self._bar(), *self._trials(), *self._accuracies())

    def _bar(self) -> list[RenderableType]:
        done = self._ended.total()
        elapsed = time.monotonic() - self._since
        known = self._total < math.inf
        left = duration(elapsed / done * (self._total - done)) if done and known else "?"
        words = [
            f"[bold]{escape(self._title)}[/]" if self._title else "",
            f"{done} of {self._total} done" if known else f"{done} done",
            f"{len(self._running)} running",
            f"{self._ended['stopped_early']} stopped early" if self._ended["stopped_early"] else "",
            f"[red]{self._ended['failed']} failed[/]" if self._ended["failed"] else "",
            f"{duration(elapsed)} so far",
            f"about {left} left" if known and done < self._total else "",
        ]
        line = " · ".join(word for word in words if word)
        bar = ProgressBar(total=max(self._total, 1), completed=done)
        return [Text.from_markup(line), *([bar] if known else [])]

    def _trials(self) -> list[RenderableType]:
        rows = [
            Text.from_markup(f"  [dim]{escape(trial_id)}[/]  {_figures(metrics)}")
            for trial_id, metrics in self._running.items()
        ]
        room = max(self.console.height // 3, 1)
        hidden = len(rows) - room
        more: list[RenderableType] = [Text(f"  and {hidden} more", "dim")] if hidden > 0 else []
        return [*rows[:room], *more]

    def _accuracies(self) -> list[RenderableType]:
        """The best validation accuracy of each method at or below shares of the dense cost."""
        if not self._best:
            return []
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("best val_accuracy")
        table.add_column("trials", justify="right")
        for budget in BUDGETS:
            table.add_column(f"≤ {percent(budget)}", justify="right")
        table.add_column("any cost", justify="right")
        for method, best in self._best.items():
            figures = [accuracy(best.get(b, math.nan)) for b in (*BUDGETS, math.inf)]
            table.add_row(escape(method), str(self._tries[method]), *figures)
        return [table]


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
    return (
        f"{row['trial_id']}  val {accuracy(_number(row, 'val_accuracy'))}  "
        f"{millions(_number(row, 'multiplications'))} multiplications "
        f"({percent(_share(row))} of dense)  {took}"
    )


def _figures(metrics: Mapping[str, float]) -> str:
    """epoch 3  val_accuracy 0.412"""
    shown = {name: metrics[name] for name in ("round", "epoch", "val_accuracy") if name in metrics}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _number(row: Mapping[str, Any], column: str, missing: float = math.nan) -> float:
    value = row.get(column)
    return missing if value is None else float(value)


def _share(row: Mapping[str, Any]) -> float:
    """Multiplications as a share of the dense network's; NaN where either is missing."""
    dense = _number(row, "dense_multiplications")
    return _number(row, "multiplications") / dense if dense else math.nan
