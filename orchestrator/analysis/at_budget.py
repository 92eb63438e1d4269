"""Best trial of each group of trials within a budget, by validation accuracy."""

import pandas as pd

from orchestrator.analysis.pareto import best_within


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
