"""Best trial of every seed at half of the dense network's multiplications, by method.

Figures are means over the seeds, since the best trial of all would be the luckiest seed's.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.pareto import as_share, best_within
from orchestrator.formatting import mean_and_deviation

HALF = 0.5


@dataclass(frozen=True)
class AtHalf:
    """One method in one cell."""

    method: str
    cell: str
    trials: pd.DataFrame
    """A row for each seed: its most accurate trial at half of the cost."""

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.trials)

    @property
    def share(self) -> float:
        """Mean multiplications over the dense network's."""
        return float(as_share(self.trials, "multiplications").mean())

    @property
    def by_seed(self) -> pd.Series:
        """The validation accuracies, by seed."""
        return self.trials.set_index("seed")["val_accuracy"]

    def mean(self, column: str) -> float:
        """NaN where a seed's is missing."""
        return float(self.trials[column].astype(float).mean(skipna=False))

    def written(self, column: str) -> str:
        """0.743 ± 0.004, of an accuracy."""
        return mean_and_deviation(self.mean(column), float(self.trials[column].astype(float).std()))


def at_half(trials: pd.DataFrame, cell: str) -> list[AtHalf]:
    """The methods with a trial at half of the cost in every seed that they have trials of.

    The most accurate comes first, then the cheapest.
    """
    found = []
    for method, own in trials[trials["cell"] == cell].groupby("method", sort=False):
        best = [best_within(rows, HALF) for _, rows in own.groupby("seed", dropna=False)]
        rows = [row for row in best if row is not None]
        if rows and len(rows) == len(best):
            found.append(AtHalf(str(method), cell, pd.DataFrame(rows)))
    return sorted(found, key=lambda each: (-each.mean("val_accuracy"), each.share))


def in_some_seeds(trials: pd.DataFrame, cell: str) -> list[str]:
    """The methods with a trial at half of the cost in some of their seeds, and not in all."""
    own = trials[trials["cell"] == cell]
    whole = {each.method for each in at_half(trials, cell)}
    return [
        str(method)
        for method, rows in own.groupby("method", sort=False)
        if method not in whole and best_within(rows, HALF) is not None
    ]
