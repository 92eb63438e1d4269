"""What confirmations found: of each point of a frontier, means over fresh seeds."""

from __future__ import annotations

import math

import pandas as pd

from orchestrator.analysis.pareto import as_share

COLUMNS = [
    "trial_id", "cell", "method", "n", "test_accuracy", "test_deviation", "test_images",
    "val_accuracy", "multiplications", "share", "latency_ms", "search_val_accuracy",
]  # fmt: skip


def confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """A row for each point that was confirmed, by cell, method and cost.

    Columns: trial_id (the search's trial), cell, method; n, the fresh seeds whose networks met the
    test images; means over these of test_accuracy, val_accuracy, multiplications (of the test
    images), share (of the dense network's) and latency_ms; test_deviation, the sample standard
    deviation, missing where n is 1; test_images; search_val_accuracy, by which the search chose it.
    """
    again = trials[(trials["phase"] == "confirmation") & trials["test_accuracy"].notna()]
    searched = trials.set_index("trial_id")["val_accuracy"]
    rows = [
        {
            "trial_id": trial_id,
            "cell": seeds["cell"].iloc[0],
            "method": seeds["method"].iloc[0],
            "n": len(seeds),
            "test_accuracy": seeds["test_accuracy"].mean(),
            "test_deviation": seeds["test_accuracy"].std() if len(seeds) > 1 else math.nan,
            "test_images": seeds["test_images"].max(),
            "val_accuracy": seeds["val_accuracy"].mean(),
            "multiplications": seeds["test_multiplications"].mean(),
            "share": as_share(
                seeds.assign(multiplications=seeds["test_multiplications"]), "multiplications"
            ).mean(),
            "latency_ms": seeds["latency_ms"].mean(),
            "search_val_accuracy": searched[trial_id],
        }
        for trial_id, seeds in again.groupby("confirms", sort=False)
        if trial_id in searched.index
    ]
    order = ["cell", "method", "multiplications"]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(order, ignore_index=True)


def by_seed(trials: pd.DataFrame, trial_id: str) -> pd.Series:
    """The test accuracies of a point, by fresh seed: methods met the same splits with each."""
    again = trials[(trials["confirms"] == trial_id) & trials["test_accuracy"].notna()]
    return again.set_index("seed")["test_accuracy"]
