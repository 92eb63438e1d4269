"""Tables of trials: on a Pareto front, confirmed, of several seeds, each method's best at half."""

from __future__ import annotations

import math

import pandas as pd

from orchestrator.analysis.at_budget import AtHalf, at_half
from orchestrator.analysis.pareto import best_within
from orchestrator.formatting import accuracy, mean_and_deviation, millions, milliseconds, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import Table, number, which_trial


def frontier_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Trials on a Pareto front, the cheapest first."""
    records = [
        {
            **which_trial(result, row),
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
    return Table.of(records)


def confirmed_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Confirmed points on test images with fresh seeds, beside what the search made of them.

    Args:
        points: of `confirmed`.
    """
    records = [
        {
            **which_trial(result, result.by_id.loc[point["trial_id"]], seed=False),
            "test": mean_and_deviation(point["test_accuracy"], point["test_deviation"]),
            "n": str(point["n"]),
            "search's validation": accuracy(point["search_val_accuracy"]),
            "multiplications": millions(point["multiplications"]),
            "of dense": percent(point["share"]),
            "latency": milliseconds(point["latency_ms"]),
            "trial": point["trial_id"],
        }
        for _, point in points.iterrows()
    ]
    return Table.of(records)


def repeated_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Options that several seeds ran: means over the seeds.

    Args:
        points: of `repeated`.
    """
    order = {method: place for place, method in enumerate(result.methods)}
    by_method = sorted(
        (point for _, point in points.iterrows()),
        key=lambda point: (result.cells.index(point["cell"]), order[point["method"]]),
    )
    records = [
        {
            **which_trial(result, result.by_id.loc[point["trial_id"]], seed=False),
            "seeds": _out_of(point["n"], point["tried"]),
            "validation": mean_and_deviation(point["val_accuracy"], point["val_deviation"]),
            "test": _of_those_tested(point),
            "on training images": accuracy(point["train_accuracy"]),
            "multiplications": millions(point["multiplications"]),
            "of dense": percent(point["share"]),
            "not zero": millions(point["nonzero_multiplications"]),
            "parameters": millions(point["parameters"]),
            "latency": milliseconds(point["latency_ms"]),
        }
        for point in by_method
    ]
    return Table.of(records)


def _out_of(n: int, all_of_them: int) -> str:
    """3, or 2 of 3."""
    return str(n) if n == all_of_them else f"{n} of {all_of_them}"


def _of_those_tested(point: pd.Series) -> str:
    """0.797 ± 0.003, and of how many where not all seeds' networks met the test images."""
    said = mean_and_deviation(point["test_accuracy"], point["test_deviation"])
    some = 0 < point["tested"] < point["n"]
    return f"{said} ({_out_of(point['tested'], point['n'])})" if some else said


def depth_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Each setting before and after: every method's best at half of the cost, means over seeds.

    Beside them the dense network that was fine-tuned as long as they were.

    Args:
        points: of `confirmed`; where there are any, the methods' best confirmed trials are shown,
            with their accuracies there.
    """
    searched = result.searched
    if not points.empty:
        searched = searched[searched["trial_id"].isin(points["trial_id"])]
        searched = searched.assign(seed=0)  # a point is of one seed, and confirmed with others
    records = []
    for cell in result.cells:
        found = {each.method: each for each in at_half(searched, cell)}
        tuned = searched[(searched["cell"] == cell) & (searched["method"] == "dense")]
        best_of_seeds = [best_within(rows, math.inf) for _, rows in tuned.groupby("seed")]
        best_of_seeds = [row for row in best_of_seeds if row is not None]
        dense = AtHalf("dense", cell, pd.DataFrame(best_of_seeds, columns=tuned.columns))
        for best in (found[method] for method in result.methods if method in found):
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
