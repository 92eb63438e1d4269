"""Multi-objective asynchronous successive halving: which trials go on at a rung.

A trial that comes to a rung is compared with those of its group that came there before it. It goes
on if it is in the better part: by non-dominated rank, then, on one front, by its distance from its
neighbours. What none of them beats is always in the better part: without that, trials in the middle
of a front gave way to useless ones at its ends, and more of the hypervolume was lost
(`benchmarks/early_stopping.py`). Nobody waits: the first ones go on.

Source: Schmucker, Donini, Zafar, Salinas, Archambeau 2021, "Multi-objective asynchronous successive
halving", arXiv 2106.12639. Where we differ: the whole first front goes on, and so do trials that
nothing tells apart from one that does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import moocore
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Arrival:
    """A trial at a rung."""

    values: Mapping[str, float]
    """Of each objective, by name."""
    goes_on: bool


class Rungs(Protocol):
    """Memory of the trials that came to the rungs, the first ones first."""

    def arrivals(self, group: str, level: int) -> Mapping[str, Arrival]:
        """The trials of a group that came to the rung at a level, by their ids."""
        ...

    def keep(self, group: str, level: int, trial_id: str, arrival: Arrival) -> None:
        """Keeps one more."""
        ...


@dataclass
class RungsInMemory:
    """Rungs that end with the process."""

    _kept: dict[tuple[str, int], dict[str, Arrival]] = field(default_factory=dict)

    def arrivals(self, group: str, level: int) -> Mapping[str, Arrival]:
        return self._kept.get((group, level), {})

    def keep(self, group: str, level: int, trial_id: str, arrival: Arrival) -> None:
        self._kept.setdefault((group, level), {})[trial_id] = arrival


@dataclass(frozen=True)
class SuccessiveHalving:
    """The rule at a rung."""

    objectives: Mapping[str, str]
    """Name -> "maximize" or "minimize"; Ray's "max" and "min" too."""
    reduction: float
    """Of so many trials one goes on, and all that none beats."""

    def goes_on(
        self, rungs: Rungs, group: str, level: int, trial_id: str, values: Mapping[str, float]
    ) -> bool:
        """Whether a trial that comes to a rung goes on; the rungs keep that it came.

        A trial that comes again, after its process was lost say, is answered as the first time.
        """
        before = rungs.arrivals(group, level)
        if trial_id not in before:
            own = {name: float(values[name]) for name in self.objectives}
            others = [[*arrival.values.values()] for arrival in before.values()]
            answer = self.in_better_part(np.array([*others, [*own.values()]]))
            rungs.keep(group, level, trial_id, Arrival(own, answer))
            return answer
        return before[trial_id].goes_on

    def in_better_part(self, points: Points) -> bool:
        """Whether the last of these trials goes on.

        Args:
            points: (n, objectives).
        """
        maximised = [direction.startswith("max") for direction in self.objectives.values()]
        points = np.where(maximised, -points, points)
        if moocore.pareto_rank(points)[-1] == 0:
            return True
        return bool(n_before(points)[-1] < math.ceil(len(points) / self.reduction))


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
