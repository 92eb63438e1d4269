"""Best trial of every seed at half of the dense network's multiplications, by method.

Figures are means over the seeds, since the best trial of all would be the luckiest seed's.
"""

from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.pareto import as_share, best_within
from orchestrator.formatting import mean_and_deviation

HALF = 0.5
FAR_CHEAPER = 0.1  # of the dense network's cost: a method so far below another was not tried there


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
    def accuracy(self) -> float:
        """Mean validation accuracy."""
        return self.mean("val_accuracy")

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
        best = best_of_each(own, ["seed"], HALF)
        if len(best) == own["seed"].nunique(dropna=False):
            found.append(AtHalf(str(method), cell, best))
    return sorted(found, key=lambda each: (-each.accuracy, each.share))


def in_some_seeds(trials: pd.DataFrame, cell: str) -> list[str]:
    """The methods with a trial at half of the cost in some of their seeds, and not in all."""
    whole = {each.method for each in at_half(trials, cell)}
    some = best_of_each(trials[trials["cell"] == cell], ["method"], HALF)["method"]
    return [method for method in some if method not in whole]


def best_of_each(trials: pd.DataFrame, group: list[str], *budgets: float) -> pd.DataFrame:
    """Best trial of each group at or below the first share of the dense cost that it has any at.

    Args:
        group: trials that are equal in these columns compete with each other.
    """
    found = []
    for _, rows in trials.groupby(group, sort=False, dropna=False):
        best = (best_within(rows, budget) for budget in budgets)
        found += [each for each in best if each is not None][:1]
    return pd.DataFrame(found, columns=trials.columns)
