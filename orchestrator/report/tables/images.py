"""Tables of what networks that decide per image spend on single images, and on each class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from orchestrator.formatting import millions, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import Table, which_trial

PER_CLASS = "multiplications_per_class.csv"


@dataclass(frozen=True)
class ClassCosts:
    """One trial's mean multiplications of each true class."""

    title: str
    """The trial and its settings."""
    images: str
    """What the means are of: test or validation."""
    table: Table
    """A row for the whole network and one for each layer, a column for each class."""


def deciding_trials(result: SweepResult, points: pd.DataFrame) -> pd.DataFrame:
    """Those of the trials whose networks decide per image: they have left a file of images."""
    there = [result.decides_per_image(row) for _, row in points.iterrows()]
    return points[pd.Series(there, index=points.index, dtype=bool)]


def spread_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How far validation images are apart in what they cost."""
    records = [
        {
            **which_trial(result, row),
            "mean": millions(row["multiplications"]),
            "of dense": percent(row["multiplications"] / row["dense_multiplications"]),
            "p5": millions(row["multiplications_p5"]),
            "median": millions(row["multiplications_p50"]),
            "p95": millions(row["multiplications_p95"]),
            "mean of test images": millions(row["test_multiplications"]),
            "trial": row["trial_id"],
        }
        for _, row in trials.sort_values(["cell", "method", "multiplications"]).iterrows()
    ]
    return Table.of(records)


def class_costs(result: SweepResult, trials: pd.DataFrame) -> Iterator[ClassCosts]:
    """For each of the trials; of test images where it has met them."""
    for _, trial in trials.sort_values(["cell", "method", "multiplications"]).iterrows():
        for images, name in (
            ("test", "test_multiplications_per_class.csv"),
            ("validation", PER_CLASS),
        ):
            rows = result.class_costs(trial, name)
            if not rows.empty:
                table = _class_table(rows, trial["dense_multiplications"])
                yield ClassCosts(result.title(trial), images, table)
                break


def mean_layers(result: SweepResult, trial: pd.Series) -> dict[str, float]:
    """What a trial's network spent on each layer for the mean validation image; empty if unknown.

    Of a network that decides per image; another's layers cost every image the same.
    """
    rows = result.class_costs(trial, PER_CLASS)
    if not result.decides_per_image(trial):
        return _by_layer(rows["multiplications"].groupby(rows["layer"], sort=False).max())
    classes = result.images(trial)["class"].value_counts()
    spent = rows["multiplications"] * rows["class"].map(classes).fillna(0)
    return _by_layer(spent.groupby(rows["layer"], sort=False).sum() / classes.sum())


def _by_layer(costs: pd.Series) -> dict[str, float]:
    return {str(layer): float(cost) for layer, cost in costs.items()}


def _class_table(rows: pd.DataFrame, dense: float) -> Table:
    """
    Args:
        rows: of one trial: class, layer, multiplications. A layer that a class lacks costs nothing.
    """
    classes = list(dict.fromkeys(rows["class"]))
    by_layer: dict[str, dict[str, float]] = {}
    for name, layer, multiplications in rows[["class", "layer", "multiplications"]].to_numpy():
        by_layer.setdefault(layer, {})[name] = multiplications
    whole = {name: math.fsum(each.get(name, 0.0) for each in by_layer.values()) for name in classes}
    records = [
        {"": "whole network", **{name: millions(whole[name]) for name in classes}},
        {"": "of dense", **{name: percent(whole[name] / dense) for name in classes}},
        *(
            {"": layer or "(itself)", **{name: millions(each.get(name, 0.0)) for name in classes}}
            for layer, each in by_layer.items()
        ),
    ]
    return Table.of(records, words=("",), best_rows=[0])
