"""Tables of methods: how they compare, and what each was given and took."""

import math

import pandas as pd

from orchestrator.analysis.comparison import compare_methods, compare_pairs
from orchestrator.analysis.pareto import BUDGETS
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import MISSING, accuracy, duration, percent
from orchestrator.report.tables.table import Table, extent, number


def comparison_table(result: SweepResult) -> Table:
    """Hypervolume, and the best accuracy at equal cost, for each cell and method.

    The rows with a cell's highest hypervolume stand out.
    """
    ordered = result.in_order(compare_methods(result.trials, result.objectives))
    records = [
        {
            "cell": row["cell"] if len(result.cells) > 1 else "",
            "method": row["method"],
            "hypervolume": f"{row['hypervolume']:.3f}",
            "95 % interval": _interval(row["hypervolume_low"], row["hypervolume_high"], ".3f"),
            **{
                f"at ≤ {percent(budget)}": accuracy(row[f"val_accuracy_at_{100 * budget:.0f}"])
                for budget in BUDGETS
            },
            "completed": f"{row['completed']} of {row['tries']}",
        }
        for _, row in ordered.iterrows()
    ]
    return Table.of(records, best_rows=ordered.groupby("cell")["hypervolume"].idxmax().tolist())


def pairs_table(result: SweepResult) -> Table:
    """At what share of equal costs the row's method is ahead of the column's."""
    pairs = compare_pairs(result.trials)
    methods = [name for name in result.methods if name in set(pairs["method"])]
    said = {(method, method): MISSING for method in methods}
    for _, row in pairs.iterrows():
        ends = _interval(100 * row["ahead_low"], 100 * row["ahead_high"], ".0f")
        text = percent(row["ahead"]) + (f" ({ends})" if ends else "")
        said[row["method"], row["other"]] = text
    records = [
        {"ahead of →": one, **{other: said.get((one, other), "") for other in methods}}
        for one in methods
    ]
    return Table.of(records, words=("ahead of →",))


def effort_table(result: SweepResult) -> Table:
    """What each method was given and what it took."""
    by_method = dict(list(result.searched.groupby("method")))
    return Table.of(
        [
            {
                "method": method,
                "tries": str(len(rows)),
                "completed": str((rows["status"] == "completed").sum()),
                "stopped early": str((rows["status"] == "stopped_early").sum() or ""),
                "fine-tuning epochs": extent(rows["fine_tuning_epochs"]),
                "epochs spent": extent(rows["epochs_spent"]),
                "Q-learning passes": _passes(rows["q_learning_epochs"]),
                "reward passes": _passes(rows["reward_epochs"]),
                "time": duration(rows["duration_s"].sum()),
                "a trial": duration(number(rows["duration_s"].median())),
            }
            for method in result.methods
            if (rows := by_method.get(method)) is not None
        ]
    )


def _passes(column: pd.Series) -> str:
    """Epochs' worth of images, the median trial's; empty where there was none."""
    median = column.median()
    return f"{median:.1f}" if median > 0 else ""


def _interval(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}" if math.isfinite(low) else ""
