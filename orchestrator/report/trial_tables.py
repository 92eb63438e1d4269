"""Tables of trials: those on a frontier, those confirmed, each method's best in every setting."""

from __future__ import annotations

import pandas as pd

from orchestrator.frontier import best_within
from orchestrator.notation import accuracy, millions, milliseconds, percent
from orchestrator.report.findings import HALF, mean_and_deviation
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.table import Table, number


def frontier_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """The trials on a frontier, the cheapest first."""
    records = [
        {
            "cell": row["cell"] if len(result.cells) > 1 else "",
            "method": row["method"],
            "settings": result.settings(row),
            "seed": str(row["seed"]) if result.searched["seed"].nunique() > 1 else "",
            "validation": accuracy(row["val_accuracy"]),
            "test": accuracy(row["test_accuracy"]),
            "multiplications": millions(row["multiplications"]),
            "of dense": percent(row["multiplications"] / row["dense_multiplications"]),
            "parameters": millions(number(row["parameters"])),
            "latency": milliseconds(row["latency_ms"]),
            "trial": row["trial_id"],
        }
        for _, row in points.sort_values(["multiplications", "val_accuracy"]).iterrows()
    ]
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def confirmed_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """The frontiers' points on test images with fresh seeds, beside what the search made of them.

    Args:
        points: of `confirmed`.
    """
    rows = result.trials.set_index("trial_id", drop=False)
    records = [
        {
            "cell": point["cell"] if len(result.cells) > 1 else "",
            "method": point["method"],
            "settings": result.settings(rows.loc[point["trial_id"]]),
            "test": mean_and_deviation(point),
            "n": str(point["n"]),
            "search's validation": accuracy(point["search_val_accuracy"]),
            "multiplications": millions(point["multiplications"]),
            "of dense": percent(point["share"]),
            "latency": milliseconds(point["latency_ms"]),
            "trial": point["trial_id"],
        }
        for _, point in points.iterrows()
    ]
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def depth_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Each setting before and after: the best trial of every method at half of the cost.

    Args:
        points: of `confirmed`; where a trial was confirmed, its accuracies there are shown.
    """
    confirmed = points.set_index("trial_id")
    records = []
    for cell in result.cells:
        rows = result.searched[result.searched["cell"] == cell]
        for method in result.methods:
            candidates = rows[rows["method"] == method]
            if not confirmed.empty:
                candidates = candidates[candidates["trial_id"].isin(confirmed.index)]
            best = best_within(candidates, HALF)
            if best is None:
                continue
            point = confirmed.loc[best["trial_id"]] if best["trial_id"] in confirmed.index else None
            records.append(
                {
                    "setting": cell,
                    "before": millions(best["dense_multiplications"]),
                    "accuracy before": accuracy(best["dense_val_accuracy"]),
                    "method": method,
                    "after": millions(best["multiplications"]),
                    "accuracy after": accuracy(best["val_accuracy"]),
                    "on test images": "" if point is None else mean_and_deviation(point),
                    "trial": best["trial_id"],
                }
            )
    return Table.of(records, words=("setting", "method", "trial"))
