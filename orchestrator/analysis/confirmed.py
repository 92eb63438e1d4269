"""Confirmed points of the Pareto fronts: means over fresh seeds."""

from __future__ import annotations

import pandas as pd

from orchestrator.analysis.pareto import as_share

COLUMNS = [
    "trial_id", "cell", "method", "n", "test_accuracy", "test_deviation", "test_images",
    "val_accuracy", "multiplications", "share", "latency_ms", "search_val_accuracy",
]  # fmt: skip


def confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """Confirmed points, by cell, method and cost.

    Columns: trial_id (the search's trial), cell, method; n, the fresh seeds whose networks met the
    test images; means over these of test_accuracy, val_accuracy, multiplications (of the test
    images), share (of the dense network's) and latency_ms; test_deviation, the sample standard
    deviation, missing where n is 1; test_images; search_val_accuracy, by which the search chose it.
    """
    again = trials[(trials["phase"] == "confirmation") & trials["test_accuracy"].notna()]
    again = again.assign(multiplications=again["test_multiplications"])
    again = again.assign(share=as_share(again, "multiplications"))
    points = again.groupby("confirms", sort=False).agg(
        cell=("cell", "first"),
        method=("method", "first"),
        n=("seed", "size"),
        test_accuracy=("test_accuracy", "mean"),
        test_deviation=("test_accuracy", "std"),
        test_images=("test_images", "max"),
        val_accuracy=("val_accuracy", "mean"),
        multiplications=("multiplications", "mean"),
        share=("share", "mean"),
        latency_ms=("latency_ms", "mean"),
    )
    searched = trials.set_index("trial_id")["val_accuracy"].rename("search_val_accuracy")
    points = points.join(searched, how="inner").rename_axis("trial_id").reset_index()
    return points[COLUMNS].sort_values(["cell", "method", "multiplications"], ignore_index=True)


def by_seed(trials: pd.DataFrame, trial_id: str) -> pd.Series:
    """Test accuracies of a point, by fresh seed: methods met the same splits with each."""
    again = trials[(trials["confirms"] == trial_id) & trials["test_accuracy"].notna()]
    return again.set_index("seed")["test_accuracy"]
