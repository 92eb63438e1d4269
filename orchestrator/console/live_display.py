"""Live display of a sweep that runs, fitted to its width and height.

First how far it has come and how long it will take, then what every place for a job does, then each
method's Pareto front so far. Where there are too few lines the rows that are left out are counted.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.console.time_left import Durations
from orchestrator.formatting import accuracy, duration, percent

STEPS = {"epoch": "epoch", "q_step": "Q-learning step"}  # what is counted while a trial runs
Point = tuple[float, float]
"""Multiplications as a share of the dense network's, and validation accuracy."""


@dataclass
class Running:
    """A job that runs."""

    name: str
    place: int
    """From 1: a core, or more where a job asks for more."""
    since: float = field(default_factory=lambda: monotonic())
    said: dict[str, float] = field(default_factory=dict)
    """What it last reported."""


@dataclass
class Standing:
    """Standing of a sweep: what the display shows."""

    title: str = ""
    total: float = math.inf
    """The jobs of this part of the sweep; infinite if their number is not known."""
    since: float = field(default_factory=lambda: monotonic())
    ended: Counter[str] = field(default_factory=Counter)
    """Status -> jobs of this part."""
    durations: Durations = field(default_factory=Durations)
    running: dict[str, Running] = field(default_factory=dict)
    """By name."""
    places: int = 0
    """How many there are that have ever had a job."""
    tries: Counter[str] = field(default_factory=Counter)
    """Method -> completed trials."""
    frontiers: dict[str, list[Point]] = field(default_factory=dict)
    """Method -> the points that none of its others beats, the cheapest first."""

    def begin_part(self, title: str, total: float) -> None:
        """A new part of the sweep begins."""
        self.title, self.total, self.since = title, total, monotonic()
        self.ended.clear()
        self.durations.begin_part()

    def start(self, name: str) -> None:
        """A job has started, in the first place that is free; again, if it had been lost there."""
        self.stop(name)
        taken = {job.place for job in self.running.values()}
        place = next(number for number in count(1) if number not in taken)
        self.running[name] = Running(name, place)
        self.places = max(self.places, place)

    def stop(self, name: str) -> float | None:
        """A job runs no more; returns how long it did, None if it did not."""
        job = self.running.pop(name, None)
        return None if job is None else monotonic() - job.since

    def said(self, name: str, metrics: Mapping[str, float]) -> None:
        """What a running job reports; of the steps that it counts the last ones stay."""
        if name in self.running:
            said = self.running[name].said
            if STEPS.keys() & metrics.keys():
                for step in STEPS:
                    said.pop(step, None)
            said.update(metrics)

    def end(self, name: str, status: str) -> None:
        """A job of this part has ended."""
        took = self.stop(name)
        self.ended[status] += 1
        self.durations.end(name, took)

    def add_point(self, method: str, point: Point) -> None:
        """A trial of the search has completed."""
        self.tries[method] += 1
        own = self.frontiers.setdefault(method, [])
        if all(map(math.isfinite, point)) and not any(_beats(other, point) for other in own):
            own[:] = sorted([other for other in own if not _beats(point, other)] + [point])

    def seconds_left(self) -> float:
        """Until this part ends; NaN if that is not known.

        Dense networks that trials wait for are not in it.
        """
        if self.total == math.inf:
            return math.nan
        running = [(name, monotonic() - job.since) for name, job in self.running.items()]
        points = {name.rpartition(":")[2]: len(own) for name, own in self.frontiers.items()}
        left = self.total - self.ended.total()
        work_s = self.durations.work_left_s(left, running, points)
        return work_s / self.places if self.places else math.nan


def frontier_reached(standing: Standing, width: int) -> RenderableType:
    """Each method's Pareto front, to stay on the screen."""
    return Group(*_frontiers(standing, len(standing.frontiers) + 2, width))


def in_a_line(standing: Standing) -> str:
    """3 of 40 done · 2 running · 12 min so far · ... · a-job: epoch 3  val 0.412"""
    jobs = sorted(standing.running.values(), key=lambda job: job.place)
    said = [f"{job.name}: {_figures(job.said) or 'begun'}" for job in jobs]
    return " · ".join([*_counts(standing), *_times(standing), *said])


def _beats(one: Point, other: Point) -> bool:
    """Equals count as beaten too: one of them is enough here."""
    return one[0] <= other[0] and one[1] >= other[1]


def display(standing: Standing, width: int, height: int) -> RenderableType:
    """The display, of at most `height` lines."""
    head = _head(standing)
    room = max(height - len(head), 0)
    jobs, methods = standing.places, len(standing.frontiers)
    # A title for each table. Both get what they need, or at least their half of what there is.
    for_jobs = min(jobs + 1 if jobs else 0, max(room // 2, room - (methods + 1 if methods else 0)))
    tables = [*_jobs(standing, for_jobs), *_frontiers(standing, room - for_jobs, width)]
    return Group(*head[:height], *tables)


def _head(standing: Standing) -> list[RenderableType]:
    title = [f"[bold]{escape(standing.title)}[/]"] if standing.title else []
    failed = f"{standing.ended['failed']} failed"
    counts = [f"[red]{text}[/]" if text == failed else text for text in _counts(standing)]
    head: list[RenderableType] = [_line(title + counts), _line(_times(standing))]
    if standing.total < math.inf:
        total, done = max(standing.total, 1), standing.ended.total()
        bar = ProgressBar(total=total, completed=done, complete_style="cyan")
        head.insert(1, Padding(bar, 0))  # by nothing, since a bar alone does not end its line
    return head


def _counts(standing: Standing) -> list[str]:
    """How the jobs of this part ended."""
    done, known = standing.ended.total(), standing.total < math.inf
    failed, stopped = standing.ended["failed"], standing.ended["stopped_early"]
    return [
        f"{done} of {standing.total} done" if known else f"{done} done",
        *([f"{failed} failed"] if failed else []),
        *([f"{stopped} stopped early"] if stopped else []),
    ]


def _times(standing: Standing) -> list[str]:
    """What runs, for how long this part has, and for how long it will."""
    left = standing.seconds_left()
    times = [f"{len(standing.running)} running", f"{duration(monotonic() - standing.since)} so far"]
    if standing.ended.total() < standing.total < math.inf:
        known = f"about {duration(left)} left of this part"
        times.append(known if math.isfinite(left) else "time left not known yet")
    return times


def _line(words: Sequence[str]) -> Text:
    line = Text.from_markup(" · ".join(words))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _jobs(standing: Standing, room: int) -> list[RenderableType]:
    """What each place does, and for how long."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("", justify="right", style="dim", no_wrap=True)
    table.add_column("running now", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("last said", no_wrap=True, overflow="ellipsis")
    table.add_column("for", justify="right", no_wrap=True)
    rows = [(str(place), "[dim]idle[/]", "", "") for place in range(1, standing.places + 1)]
    for job in standing.running.values():
        figures, lasted = _figures(job.said), duration(monotonic() - job.since)
        rows[job.place - 1] = (str(job.place), escape(job.name), figures, lasted)
    return _fitted(table, rows, room)


def _frontiers(standing: Standing, room: int, width: int) -> list[RenderableType]:
    """Each method's Pareto front: accuracies, and at which share of the dense network's cost."""
    names = max((len(method) for method in standing.frontiers), default=0)
    names = min(max(names, len(FRONTIER)), width // 3)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(FRONTIER, min_width=names, max_width=names, no_wrap=True, overflow="ellipsis")
    table.add_column("trials", justify="right", no_wrap=True, min_width=len("trials"))
    table.add_column("val_accuracy at share of the dense cost", no_wrap=True, overflow="ellipsis")
    most = max((width - names - len("  trials  ")) // POINT_WIDTH, 1)
    rows = [
        (escape(method), str(standing.tries[method]), _points(points, most))
        for method, points in standing.frontiers.items()
    ]
    return _fitted(table, rows, room)


FRONTIER = "frontier so far"
POINT_WIDTH = len("0.912 at 100 %   ")


def _points(points: Sequence[Point], most: int) -> str:
    """0.741 at 12 %   0.912 at 55 %; of many the cheapest, the dearest and some between."""
    if len(points) > most:
        steps = [round(i * (len(points) - 1) / max(most - 1, 1)) for i in range(most)]
        points = [points[step] for step in steps] if most > 1 else [points[-1]]
    said = [f"{accuracy(value)} [dim]at {percent(share):>5}[/]" for share, value in points]
    return "   ".join(said)


def _fitted(table: Table, rows: Sequence[tuple[str, ...]], room: int) -> list[RenderableType]:
    """The table with as many rows as fit below its title, and how many do not."""
    if not rows or room < 2:
        return []
    shown = len(rows) if len(rows) < room else room - 2
    for row in rows[:shown]:
        table.add_row(*row)
    hidden = len(rows) - shown
    more: list[RenderableType] = [Text(f"and {hidden} more", "dim")] if hidden else []
    return [table, *more] if shown else more


def _figures(said: dict[str, float]) -> str:
    """round 1  epoch 3  val 0.412"""
    steps = [f"{STEPS.get(n, n)} {said[n]:g}" for n in ("round", *STEPS) if n in said]
    reached = [f"val {accuracy(said['val_accuracy'])}"] if "val_accuracy" in said else []
    return "  ".join(steps + reached)
