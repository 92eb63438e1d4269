"""Early stopping with two objectives or more: multi-objective asynchronous successive halving.

After some epochs of its fine-tuning, at a rung, a trial is compared with those of its study that
have come there before it. It goes on if it is in the better part: by non-dominated rank, then, on
one front, by its distance from its neighbours. What none of them beats is always in the better
part: without that, trials in the middle of a front gave way to useless ones at its ends, and more
of the hypervolume was lost (`benchmarks/early_stopping.py`). Nobody waits: the first ones go on.

A rung is a folder of the run folder, with a file for each trial that came to it, written once and
by its trial alone: workers on all machines see the same ones, no two write to one file, and a trial
that is run again decides as it did before.

Source: Schmucker, Donini, Zafar, Salinas, Archambeau 2021, "Multi-objective asynchronous successive
halving", arXiv 2106.12639. Where we differ: the whole first front goes on, and so do trials that
nothing tells apart from one that does.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import moocore
import numpy as np
from numpy.typing import NDArray

from orchestrator.run_folder.trials_table import write_atomically
from orchestrator.sweep_file import EarlyStopping

Figures = Mapping[str, float]  # what a trial has at a rung: a value of each objective
Points = NDArray[np.float64]


class StoppedEarlyError(Exception):
    """Ends a trial at a rung; no failure."""

    def __init__(self, epochs: int, figures: Figures) -> None:
        super().__init__(f"Stopped early, after {epochs} epochs of fine-tuning.")
        self.epochs = epochs
        self.figures = dict(figures)


@dataclass(frozen=True)
class Rungs:
    """The rungs of all studies of a sweep."""

    folder: Path
    settings: EarlyStopping
    objectives: Mapping[str, str]
    """Name -> "maximize" or "minimize"."""

    def judge(self, study: str, trial_id: str, epochs: int, figures: Figures) -> None:
        """Notes that a trial has come to the rung after so many epochs.

        Raises:
            StoppedEarlyError: if it is not to go on.
        """
        rung = self.folder / study / str(epochs)
        rung.mkdir(parents=True, exist_ok=True)
        own = rung / f"{trial_id}.json"
        if own.exists():
            goes_on = json.loads(own.read_bytes())["goes_on"]
        else:
            values = {name: float(figures[name]) for name in self.objectives}
            others = [_read(path, tuple(values)) for path in sorted(rung.glob("*.json"))]
            points = np.array([*others, tuple(values.values())])
            goes_on = self._in_better_part(points)
            write_atomically(own, json.dumps({**values, "goes_on": goes_on}).encode())
        if not goes_on:
            raise StoppedEarlyError(epochs, figures)

    def _in_better_part(self, points: Points) -> bool:
        """Whether the last of these trials, (n, objectives), goes on."""
        maximise = [direction == "maximize" for direction in self.objectives.values()]
        points = np.where(maximise, -points, points)
        if moocore.pareto_rank(points)[-1] == 0:
            return True
        return bool(n_before(points)[-1] < math.ceil(len(points) / self.settings.reduction))


@cache
def _read(path: Path, names: tuple[str, ...]) -> tuple[float, ...]:
    """The values of a trial at a rung, which never change."""
    values = json.loads(path.read_bytes())
    return tuple(values[name] for name in names)


def n_before(points: Points) -> NDArray[np.int64]:
    """How many points come before each: those of lower rank, and wider spread ones of its own.

    Args:
        points: (n, objectives), all to be minimised.
    """
    ranks = moocore.pareto_rank(points)
    spreads = np.empty(len(points))
    for rank in np.unique(ranks):
        spreads[ranks == rank] = spread(points[ranks == rank])
    lower = ranks[None, :] < ranks[:, None]
    wider = (ranks[None, :] == ranks[:, None]) & (spreads[None, :] > spreads[:, None])
    found: NDArray[np.int64] = (lower | wider).sum(axis=1)
    return found


def spread(front: Points) -> NDArray[np.float64]:
    """The crowding distance of each point of a front: how far apart its two neighbours are.

    Summed over the objectives, each in units of its range over the front; infinite at its ends.
    Equal points share one distance, the one that a single point there would have.

    Args:
        front: (n, objectives).

    Source: Deb, Pratap, Agarwal, Meyarivan 2002, IEEE Transactions on Evolutionary Computation 6.
    """
    unique, places = np.unique(front, axis=0, return_inverse=True)
    distances = np.zeros(len(unique))
    for values in unique.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        if ordered[0] == ordered[-1]:
            continue
        distances[order[[0, -1]]] = np.inf
        distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    shared: NDArray[np.float64] = distances[places.reshape(-1)]
    return shared
