"""Cascades of a sweep's own networks: what two or three of them reach, one after the other.

Nothing is trained or run: every trial has left its logits of the validation images. An image goes
on to the next network where the margin between the two most probable classes is below a threshold;
the answer is the mean of the log-probabilities so far. Networks and thresholds are chosen by the
accuracy on one half of the images, and judged by that on the other (see `OwnNetworks`). Costs are
means over both halves, as they are of every network in trials.csv.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.own_networks import OwnNetworks
from orchestrator.analysis.pareto import TRADE, non_dominated
from orchestrator.analysis.uncertainty import paired_error

MOST_COMBINED = 14  # networks of a cell and seed: those on their own frontier
THRESHOLDS = 20  # tried for each network but the last, at even steps of the images
PREFIXES_KEPT = 32  # of networks whose answers many cascades begin with

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OwnCascade:
    """A cascade of a sweep's own networks, beside the best of them alone."""

    cell: str
    seed: int
    networks: tuple[str, ...]
    """Their trial_ids, in the order in which they look."""
    thresholds: tuple[float, ...]
    """One fewer. An image goes on where the margin is below."""
    reached: tuple[float, ...]
    """Share of the images that comes to each network."""
    multiplications: float
    """Mean over the images."""
    share: float
    """The same, of the dense network's."""
    chosen_by: float
    """Accuracy on the images that chose it."""
    accuracy: float
    """On those that judge, as all that follows."""
    at_random: float
    """Expected of the same networks where as many images go on at random."""
    alone: str
    """The trial_id of the best network alone within the same limits."""
    alone_multiplications: float
    alone_accuracy: float
    ahead: float
    """Of it, in points."""
    error: float
    """The standard error of that, in points."""
    images: int
    """Those that judge."""

    @property
    def trial_id(self) -> str:
        """As it is asked for by name."""
        return ",".join(self.networks)

    @property
    def alone_share(self) -> float:
        """Of the dense network's multiplications."""
        return self.share * self.alone_multiplications / self.multiplications

    @property
    def at_most(self) -> int:
        """Multiplications within which it, and what stands beside it, are what they are."""
        return math.ceil(max(self.multiplications, self.alone_multiplications))


def frontier(networks: OwnNetworks) -> pd.DataFrame:
    """The cascades that nothing beats on the images that choose, the cheapest first.

    None is dearer than the dense network.

    Columns: members (their places), thresholds, val_accuracy (of these images), multiplications.
    """
    fixed = np.flatnonzero(networks.fixed)
    front = fixed[non_dominated(networks.alone.iloc[fixed], TRADE)].tolist()
    if len(front) > MOST_COMBINED:
        front = [front[place] for place in evenly(len(front), MOST_COMBINED)]
    looks = _Looks(networks, front)
    tried = [_tried(looks, each) for size in (2, 3) for each in combinations(front, size)]
    found = _unbeaten(tried, networks.alone)
    return found[found["multiplications"] <= networks.dense_multiplications]


def frontier_of(networks: OwnNetworks, members: Sequence[int]) -> pd.DataFrame:
    """As `frontier`, of these two or three networks alone, in this order and at any cost."""
    looks = _Looks(networks, members)
    return _unbeaten([_tried(looks, tuple(members))], networks.alone.iloc[:0])


def evenly(n: int, most: int) -> list[int]:
    """At most so many of n places, at even steps, the first and the last among them."""
    places: list[int] = np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()
    return places


def judged(
    networks: OwnNetworks,
    members: Sequence[int],
    thresholds: Sequence[float],
    alone: int,
) -> OwnCascade:
    """A cascade as it does on the images that judge.

    Args:
        alone: the place of the network that stands beside it.
    """
    looks, judges = _Looks(networks, members), ~networks.chooses
    after = [tuple(members[: number + 1]) for number in range(len(members))]
    each = [looks.after(so_far).correct for so_far in after]
    waiting, right = np.ones(len(judges), dtype=bool), each[0]
    reached = [1.0]
    for number, threshold in enumerate(thresholds, 1):
        waiting = waiting & (looks.after(after[number - 1]).margins < threshold)
        right = np.where(waiting, each[number], right)
        reached.append(float(waiting.mean()))
    accuracies = [own[judges].mean() for own in each]
    stops = [here - later for here, later in pairwise([*reached, 0.0])]
    cost = float(networks.costs[list(members)] @ reached)
    ids, other = networks.rows["trial_id"], networks.correct[alone, judges]
    return OwnCascade(
        cell=networks.cell,
        seed=networks.seed,
        networks=tuple(ids[place] for place in members),
        thresholds=tuple(map(float, thresholds)),
        reached=tuple(reached),
        multiplications=cost,
        share=cost / networks.dense_multiplications,
        chosen_by=float(right[networks.chooses].mean()),
        accuracy=float(right[judges].mean()),
        at_random=float(np.dot(stops, accuracies)),
        alone=ids[alone],
        alone_multiplications=float(networks.costs[alone]),
        alone_accuracy=float(other.mean()),
        ahead=100 * float(right[judges].mean() - other.mean()),
        error=paired_error(right[judges], other),
        images=int(judges.sum()),
    )


@dataclass(frozen=True)
class _After:
    """What is known of all images after some networks' looks."""

    correct: NDArray[np.bool_]
    margins: Floats
    levels: Floats
    """(thresholds,): those that are tried, in float32, as the network itself has them."""
    unsure: Floats
    """(thresholds, n), 0 or 1: which images are below each."""


class _Looks:
    """The answers after one, two and three looks; what several cascades share is computed once."""

    def __init__(self, networks: OwnNetworks, places: Sequence[int]) -> None:
        self.networks = networks
        self._own = {
            place: _log_softmax(networks.logits[place].astype(np.float64)) for place in places
        }
        self.total = lru_cache(PREFIXES_KEPT)(self._total)
        self.after = lru_cache(PREFIXES_KEPT)(self._after)

    def correct(self, members: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which images the mean of the log-probabilities classifies right, (n,)."""
        right: NDArray[np.bool_] = self.total(members).argmax(axis=1) == self.networks.labels
        return right

    def _total(self, members: tuple[int, ...]) -> Floats:
        *before, last = members
        return self.total(tuple(before)) + self._own[last] if before else self._own[last]

    def _after(self, members: tuple[int, ...]) -> _After:
        margins = _margins(self.total(members) / len(members))
        # Halfway between two images' margins, so that rounding tips no decision.
        ordered = np.sort(margins[self.networks.chooses])
        ordered = np.concatenate([ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
        on = np.linspace(0, len(ordered) - 1, THRESHOLDS + 1)[1:]  # images that go on
        levels = ordered[on.round().astype(int)].astype(np.float32).astype(np.float64)
        unsure = (margins < levels[:, None]).astype(float)
        return _After(self.correct(members), margins, levels, unsure)


@dataclass(frozen=True)
class _Tried:
    """A cascade with every combination of its thresholds."""

    members: tuple[int, ...]
    levels: tuple[Floats, ...]
    """Of each threshold those that are tried."""
    accuracies: Floats
    """(first thresholds,) or (first, second thresholds), on the images that choose."""
    costs: Floats
    """As long."""

    def thresholds(self, place: int) -> tuple[float, ...]:
        """Those of a place in the flattened figures."""
        places = np.unravel_index(place, self.accuracies.shape)
        return tuple(float(own[at]) for own, at in zip(self.levels, places, strict=True))


def _tried(looks: _Looks, members: tuple[int, ...]) -> _Tried:
    networks = looks.networks
    counted, n = networks.chooses / networks.chooses.sum(), len(networks.labels)
    costs = networks.costs[list(members)]
    prefixes = [looks.after(members[: number + 1]) for number in range(len(members) - 1)]
    correct = [*(each.correct for each in prefixes), looks.correct(members)]
    gains = [(later.astype(float) - here) * counted for here, later in pairwise(correct)]
    first, *second = (each.unsure for each in prefixes)
    accuracies = correct[0] @ counted + first @ gains[0]
    spent = costs[0] + costs[1] * first.mean(axis=1)
    for unsure in second:
        accuracies = accuracies[:, None] + first @ (unsure * gains[1]).T
        spent = spent[:, None] + costs[2] * (first @ unsure.T) / n
    return _Tried(members, tuple(each.levels for each in prefixes), accuracies, spent)


def _unbeaten(tried: Sequence[_Tried], alone: pd.DataFrame) -> pd.DataFrame:
    """The cascades that neither one another nor the networks alone beat; of equal ones the first.

    Args:
        alone: val_accuracy and multiplications of these.
    """
    ends = np.cumsum([0, *(each.accuracies.size for each in tried)])
    figures = [(each.accuracies.ravel(), each.costs.ravel()) for each in tried]
    figures.append((alone["val_accuracy"].to_numpy(), alone["multiplications"].to_numpy()))
    accuracies, costs = map(np.concatenate, zip(*figures, strict=True))
    points = pd.DataFrame({"val_accuracy": accuracies, "multiplications": costs})
    best = points[non_dominated(points, TRADE)].drop_duplicates()
    best = best[best.index < ends[-1]].sort_values("multiplications", kind="stable")
    numbers = np.searchsorted(ends, best.index, side="right") - 1
    own = [(tried[n], place - ends[n]) for n, place in zip(numbers, best.index, strict=True)]
    return best.assign(
        members=[each.members for each, _ in own],
        thresholds=[each.thresholds(place) for each, place in own],
    ).reset_index(drop=True)


def _margins(answers: Floats) -> Floats:
    """Of the two most probable classes, (n,), of (n, classes) logarithms of odds."""
    below = answers - answers.max(axis=1, keepdims=True)
    second = np.partition(below, -2, axis=1)[:, -2]
    margins: Floats = -np.expm1(second) / np.exp(below).sum(axis=1)
    return margins


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
