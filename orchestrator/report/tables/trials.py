"""Tables of trials: on a Pareto front, confirmed, of several seeds, each method's best at half."""

import math

import pandas as pd

from orchestrator.analysis.at_budget import AtHalf, at_half, best_of_each
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import mean_and_deviation, millions
from orchestrator.report.tables.table import Table, trials_table


def frontier_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Trials on a Pareto front, the cheapest first."""
    return trials_table(
        result, points.sort_values(["multiplications", "val_accuracy"]),
        "validation", "test", "multiplications", "of dense", "parameters", "latency", "trial",
    )  # fmt: skip


def confirmed_table(result: SweepResult) -> Table:
    """Confirmed points on test images with fresh seeds, beside what the search made of them."""
    return trials_table(
        result, result.confirmed,
        "test", "95 % interval", "each seed", "n", "search's validation", "multiplications",
        "of dense", "latency", "trial",
        seed=False,
    )  # fmt: skip


def repeated_table(result: SweepResult) -> Table:
    """Options that several seeds ran: means over the seeds."""
    return trials_table(
        result, result.in_order(result.repeated),
        "seeds", "validation", "95 % interval", "each seed", "test", "on training images",
        "multiplications", "of dense", "not zero", "parameters", "latency",
        seed=False,
    )  # fmt: skip


def depth_table(result: SweepResult) -> Table:
    """Each setting before and after: every method's best at half of the cost, means over seeds.

    Beside them the dense network that was fine-tuned as long as they were. Where trials were
    confirmed the methods' best of these are shown, with their accuracies there.
    """
    searched, points = result.searched, result.confirmed
    if not points.empty:
        searched = searched[searched["trial_id"].isin(points["trial_id"])]
        searched = searched.assign(seed=0)  # a point is of one seed, and confirmed with others
    records = []
    for cell in result.cells:
        tuned = searched[(searched["cell"] == cell) & (searched["method"] == "dense")]
        dense = AtHalf("dense", cell, best_of_each(tuned, ["seed"], math.inf))
        found = at_half(searched, cell)
        for best in sorted(found, key=lambda each: result.methods.index(each.method)):
            records.append(
                {
                    "setting": cell,
                    "before": millions(best.mean("dense_multiplications")),
                    "accuracy before": best.written("dense_val_accuracy"),
                    "dense fine-tuned, on training images": dense.written("train_accuracy"),
                    "dense fine-tuned, on test images": _on_test_images(dense, points),
                    "method": best.method,
                    "after": millions(best.mean("multiplications")),
                    "accuracy after": best.written("val_accuracy"),
                    "on training images": best.written("train_accuracy"),
                    "on test images": _on_test_images(best, points),
                    "seeds": str(best.n) if best.n > 1 else "",
                    "trial": str(best.trials.iloc[0]["trial_id"]) if best.n == 1 else "",
                }
            )
    return Table.of(records)


def _on_test_images(found: AtHalf, points: pd.DataFrame) -> str:
    """By fresh seeds where the trial was confirmed; of several seeds what these came to."""
    point = points[points["trial_id"].isin(found.trials["trial_id"])]
    if found.n == 1 and not point.empty:
        own = point.iloc[0]
        return mean_and_deviation(own["test_accuracy"], own["test_deviation"])
    return found.written("test_accuracy")
