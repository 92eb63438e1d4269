"""Tables of what networks that decide per image spend on single images, and on each class."""

import math
from collections.abc import Iterator

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import millions, percent
from orchestrator.report.tables.table import Table, trials_table

PER_CLASS = "multiplications_per_class.csv"


def deciding_trials(result: SweepResult, points: pd.DataFrame) -> pd.DataFrame:
    """Those of the trials whose networks decide per image: they have left a file of images."""
    there = [result.decides_per_image(row) for _, row in points.iterrows()]
    return points[pd.Series(there, index=points.index, dtype=bool)]


def spread_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How far validation images are apart in what they cost."""
    return trials_table(
        result, trials.sort_values(["cell", "method", "multiplications"]),
        "mean", "of dense", "p5", "median", "p95", "mean of test images", "trial",
    )  # fmt: skip


def class_costs(result: SweepResult, trials: pd.DataFrame) -> Iterator[tuple[str, str, Table]]:
    """Mean multiplications of each true class: each trial's title, "test" or "validation", table.

    Of test images where it has met them. A row is the whole network or a layer, a column a class.
    """
    for _, trial in trials.sort_values(["cell", "method", "multiplications"]).iterrows():
        for images, name in (
            ("test", "test_multiplications_per_class.csv"),
            ("validation", PER_CLASS),
        ):
            rows = result.class_costs(trial, name)
            if not rows.empty:
                table = _class_table(rows, trial["dense_multiplications"])
                yield result.title(trial), images, table
                break


def mean_layers(result: SweepResult, trial: pd.Series) -> pd.Series:
    """What a trial's network spent on each layer for the mean validation image; empty if unknown.

    Of a network that decides per image; another's layers cost every image the same.
    """
    rows = result.class_costs(trial, PER_CLASS)
    if not result.decides_per_image(trial):
        return rows.groupby("layer", sort=False)["multiplications"].max()
    classes = result.images(trial)["class"].value_counts()
    spent = rows["multiplications"] * rows["class"].map(classes).fillna(0)
    return spent.groupby(rows["layer"], sort=False).sum() / classes.sum()


def _class_table(rows: pd.DataFrame, dense: float) -> Table:
    """
    Args:
        rows: of one trial: class, layer, multiplications. A layer that a class lacks costs nothing.
    """
    known = rows.fillna({"multiplications": math.inf})  # of a row that was cut off: no number
    costs = known.pivot(index="layer", columns="class", values="multiplications").fillna(0.0)
    costs = costs.loc[rows["layer"].unique(), rows["class"].unique()]
    whole = costs.apply(math.fsum)
    records = [
        {"": "whole network", **whole.map(millions)},
        {"": "of dense", **(whole / dense).map(percent)},
        *({"": layer or "(itself)", **own.map(millions)} for layer, own in costs.iterrows()),
    ]
    return Table.of(records, words=("",), best_rows=[0])
