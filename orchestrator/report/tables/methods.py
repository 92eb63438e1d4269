"""Tables of methods: how they compare, and what each was given and took."""

import math

import pandas as pd

from orchestrator.analysis.comparison import compare_methods, compare_pairs
from orchestrator.analysis.pareto import BUDGETS
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import FEW_SEEDS
from orchestrator.formatting import MISSING, accuracy, duration, extent, percent
from orchestrator.report.charts.vega_lite import objective_in_words
from orchestrator.report.tables.table import Table, each_seed, interval, number, out_of


def comparison_table(result: SweepResult) -> Table:
    """Hypervolume, and the best accuracy at equal cost, for each cell and method.

    The row with a cell's highest hypervolume stands out, unless a method is missing among these.
    """
    ordered = result.in_order(compare_methods(result.trials, result.objectives))
    records = [
        {
            "cell": row["cell"] if len(result.cells) > 1 else "",
            "method": row["method"],
            "hypervolume": _hypervolume(row["hypervolume"], row["outside"]),
            "95 % interval": interval(row["hypervolume_low"], row["hypervolume_high"]),
            "each seed": each_seed(row["hypervolume_by_seed"]),
            **{
                f"at {percent(budget)}": accuracy(row[f"val_accuracy_at_{100 * budget:.0f}"])
                for budget in BUDGETS
            },
            "completed": f"{row['completed']} of {row['tries']}",
        }
        for _, row in ordered.iterrows()
    ]
    missing = ordered["hypervolume"].isna() & (ordered["outside"] == "")
    known = ordered[~ordered["cell"].isin(ordered["cell"][missing]) & (ordered["hypervolume"] > 0)]
    return Table.of(records, best_rows=known.groupby("cell")["hypervolume"].idxmax().tolist())


def pairs_table(result: SweepResult) -> Table:
    """How many points of accuracy the row's method is ahead of the column's, at equal cost."""
    pairs = compare_pairs(result.trials)
    methods = [name for name in result.methods if name in set(pairs["method"])]
    said = {(method, method): MISSING for method in methods}
    for _, row in pairs.iterrows():
        notes = [_points(row["difference_low"], row["difference_high"], link=" to ")]
        if row["seeds"] < result.n_seeds:
            notes.append(f"{out_of(row['seeds'], result.n_seeds)} seeds")
        noted = "; ".join(filter(None, notes))
        text = _points(row["difference"]) + (f" ({noted})" if noted else "")
        said[row["method"], row["other"]] = text
    records = [
        {"ahead of →": one, **{other: said.get((one, other), "") for other in methods}}
        for one in methods
    ]
    return Table.of(records, words=("ahead of →",))


def pairs_by_seed_table(result: SweepResult) -> Table:
    """What each seed came to where an interval of `pairs_table` is of few; each pair once."""
    pairs = compare_pairs(result.trials)
    places = {method: place for place, method in enumerate(result.methods)}
    once = pairs[pairs["method"].map(places) < pairs["other"].map(places)]
    return Table.of(
        [
            {
                "method": row["method"],
                "ahead of": row["other"],
                "points": _points(row["difference"]),
                "95 % interval": _points(
                    row["difference_low"], row["difference_high"], link=" to "
                ),
                "each seed": _points(*row["by_seed"]),
            }
            for _, row in once[once["seeds"].between(2, FEW_SEEDS - 1)].iterrows()
        ],
        words=("method", "ahead of"),
    )


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
                "fine-tuning epochs": extent(rows["fine_tuning_epochs"].dropna()),
                "epochs spent": extent(rows["epochs_spent"].dropna()),
                "epochs trained": extent(rows["training_epochs"].dropna()),
                "training multiplications": _giga(rows["training_multiplications"]),
                "Q-learning passes": _passes(rows["q_learning_epochs"]),
                "reward passes": _passes(rows["reward_epochs"]),
                "statistics passes": _passes(rows["statistics_epochs"]),
                "time": duration(rows["duration_s"].sum()),
                "a trial": duration(number(rows["duration_s"].median())),
            }
            for method in result.methods
            if (rows := by_method.get(method)) is not None
        ]
    )


def _giga(column: pd.Series) -> str:
    """12,345 G, the median trial's; empty where it is not known."""
    median = column.median()
    return "" if pd.isna(median) else f"{median / 1e9:,.0f} G"


def _passes(column: pd.Series) -> str:
    """Epochs' worth of images, the median trial's; empty where there was none."""
    median = column.median()
    return f"{median:.1f}" if median > 0 else ""


def _hypervolume(value: float, outside: str) -> str:
    """0.512; or that the reference point is not reached, and in which objectives."""
    if outside:
        return f"outside ({', '.join(map(objective_in_words, outside.split(', ')))})"
    return accuracy(value)


def _points(*differences: float, link: str = ", ") -> str:
    """+1.2, -0.3: differences of accuracies in points; empty where one is not known."""
    known = all(map(math.isfinite, differences))
    return link.join(f"{round(100 * each, 1) + 0:+.1f}" for each in differences) if known else ""
