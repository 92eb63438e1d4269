"""Curve of accuracy against cost: what a method reaches at the costs that it tried.

Two curves are compared at equal cost, and only where both were tried, so that a method given five
budgets is no better off than one given two of them.
"""

from typing import NamedTuple

import numpy as np

SAME_COST = 0.02  # shares of the dense network's cost that differ by less are one cost
WIDEST_GAP = 0.25  # between two costs that were tried; nothing is read between them if it is wider
ROUNDING = 1e-9


class Curve(NamedTuple):
    """Pareto front of one method's tries, with straight lines between its points."""

    tried: np.ndarray
    """(n,) every cost that was tried, ascending, as shares of the dense network's."""
    costs: np.ndarray
    """(m,) those of the front, and the dearest one that was tried."""
    accuracies: np.ndarray
    """(m,) the best at or below each of `costs`."""

    @staticmethod
    def of(points: np.ndarray) -> "Curve":
        """From tries (tries, 2), accuracy and share of the dense cost; NaN where one has none."""
        points = points[np.isfinite(points).all(axis=1)]
        accuracy, cost = points[np.lexsort((-points[:, 0], points[:, 1]))].T
        best = np.maximum.accumulate(accuracy)
        on_front = np.diff(best, prepend=-np.inf) > 0
        on_front[-1:] = True
        return Curve(np.unique(cost), cost[on_front], best[on_front])

    def at(self, costs: np.ndarray) -> np.ndarray:
        """Accuracy at these costs; NaN where none near was tried, nor two with it between them."""
        if len(self.tried) == 0:
            return np.full(len(costs), np.nan)
        after = np.searchsorted(self.tried, costs)
        last = len(self.tried) - 1
        below, above = self.tried[(after - 1).clip(0)], self.tried[after.clip(max=last)]
        between = (after > 0) & (after <= last) & (above - below <= WIDEST_GAP + ROUNDING)
        nearest = np.minimum(abs(costs - below), abs(costs - above))
        known = between | (nearest <= SAME_COST + ROUNDING)
        return np.where(known, np.interp(costs, self.costs, self.accuracies), np.nan)


def costs_in_common(*curves: Curve) -> np.ndarray:
    """The costs at which curves are compared: those of the one that was tried at fewest of them.

    Where that is equal, those of the one tried at fewest in all; else of all that are equal in it.

    A line between two points lies below a curve that bends, the more so the further apart they are.
    So the curve with more points is read at the costs of the other, not the other way round.
    """
    found = []
    for own in curves:
        known = np.all([np.isfinite(each.at(own.tried)) for each in curves], axis=0)
        if known.any():
            found.append((int(known.sum()), len(own.tried), own.tried[known]))
    fewest = min((each[:2] for each in found), default=None)
    alike = [costs for *counts, costs in found if tuple(counts) == fewest]
    return np.unique(np.concatenate(alike)) if alike else np.zeros(0)


def mean_difference(one: Curve, other: Curve) -> float:
    """Mean of what `one` is ahead at the costs that both have, a fraction; NaN if there are none.

    Such a cost may be read from the line between two others.
    """
    costs = costs_in_common(one, other)
    return float((one.at(costs) - other.at(costs)).mean()) if len(costs) else np.nan
