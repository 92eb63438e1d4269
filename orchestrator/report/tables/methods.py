"""Tables of methods: how they compare, and what each was given and took."""

from __future__ import annotations

import math

import pandas as pd

from orchestrator.analysis.pareto import BUDGETS
from orchestrator.formatting import MISSING, accuracy, duration, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import Table, extent, number


def comparison_table(result: SweepResult, comparison: pd.DataFrame) -> Table:
    """Hypervolume, and the best accuracy at equal cost, for each cell and method.

    Args:
        comparison: of `compare_methods`. The rows with a cell's highest hypervolume stand out.
    """
    cells, methods = result.cells, result.methods
    ordered = comparison.sort_values(
        ["cell", "method"],
        key=lambda column: column.map((cells if column.name == "cell" else methods).index),
        ignore_index=True,
    )
    records = [
        {
            "cell": row["cell"] if len(cells) > 1 else "",
            "method": row["method"],
            "hypervolume": f"{row['hypervolume']:.3f}",
            "95 % interval": _interval(row["hypervolume_low"], row["hypervolume_high"]),
            **{
                f"at ≤ {percent(budget)}": accuracy(row[f"val_accuracy_at_{100 * budget:.0f}"])
                for budget in BUDGETS
            },
            "completed": f"{row['completed']} of {row['tries']}",
        }
        for _, row in ordered.iterrows()
    ]
    best = ordered.groupby("cell")["hypervolume"].idxmax().tolist() if records else []
    return Table.of(records, best_rows=best)


def pairs_table(result: SweepResult, pairs: pd.DataFrame) -> Table:
    """At what share of equal costs the row's method is ahead of the column's.

    Args:
        pairs: of `compare_pairs`.
    """
    said = {
        (row["method"], row["other"]): f"{percent(row['ahead'])}"
        + (
            f" ({_percent_interval(row['ahead_low'], row['ahead_high'])})"
            if math.isfinite(row["ahead_low"])
            else ""
        )
        for _, row in pairs.iterrows()
    }
    methods = [name for name in result.methods if name in set(pairs["method"])]
    records = [
        {
            "ahead of →": one,
            **{other: MISSING if one == other else said.get((one, other), "") for other in methods},
        }
        for one in methods
    ]
    return Table.of(records, words=("ahead of →",))


def effort_table(result: SweepResult) -> Table:
    """What each method was given and what it took."""
    records = []
    for method in result.methods:
        rows = result.searched[result.searched["method"] == method]
        if rows.empty:
            continue
        records.append(
            {
                "method": method,
                "tries": str(len(rows)),
                "completed": str((rows["status"] == "completed").sum()),
                "stopped early": _count((rows["status"] == "stopped_early").sum()),
                "fine-tuning epochs": extent(rows["fine_tuning_epochs"]),
                "epochs spent": extent(rows["epochs_spent"]),
                "Q-learning passes": _passes(rows["q_learning_epochs"]),
                "reward passes": _passes(rows["reward_epochs"]),
                "time": duration(rows["duration_s"].sum()),
                "a trial": duration(number(rows["duration_s"].median())),
            }
        )
    return Table.of(records)


def _passes(column: pd.Series) -> str:
    """Epochs' worth of images, the median trial's; empty where there was none."""
    median = column.median()
    return f"{median:.1f}" if median > 0 else ""


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""


def _percent_interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"


def _count(number: int) -> str:
    """Empty for none."""
    return str(number) if number else ""
