"""Means over seeds of options that several seeds ran."""

from __future__ import annotations

import pandas as pd

from orchestrator.analysis.pareto import DENSE_COST, TRADE, as_share, eligible

KNOWN_OF_ALL = ["train_accuracy", "share", *DENSE_COST]
COLUMNS = [
    "trial_id", "cell", "method", "n", "tried", "val_accuracy", "val_deviation", "tested",
    "test_accuracy", "test_deviation", *KNOWN_OF_ALL,
]  # fmt: skip


def repeated(trials: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each method's options in each cell that completed with several.

    By cell, method and multiplications. Columns: trial_id (the first of them), cell, method; n, the
    seeds, and tried, with those whose trials failed or were stopped; means over the n of
    val_accuracy, train_accuracy, share (multiplications over the dense network's) and the costs;
    tested, the seeds whose networks met the test images, and the mean test_accuracy of these;
    val_deviation and test_deviation, sample standard deviations, the latter missing where tested is
    less than 2. Another figure that a seed lacks is missing. Of several tries of one seed the first
    counts.
    """
    completed = eligible(trials, TRADE)
    options = ["cell", "method", *(name for name in map(str, completed.columns) if "." in name)]
    once = completed.drop_duplicates([*options, "seed"])
    once = once.assign(share=as_share(once, "multiplications"))
    once = once.assign(**once[KNOWN_OF_ALL].astype(float))
    alike = once.groupby(options, sort=False, dropna=False)
    points = alike.agg(
        trial_id=("trial_id", "first"),
        n=("seed", "size"),
        val_accuracy=("val_accuracy", "mean"),
        val_deviation=("val_accuracy", "std"),
        tested=("test_accuracy", "count"),
        test_accuracy=("test_accuracy", "mean"),
        test_deviation=("test_accuracy", "std"),
    )
    figures = alike[KNOWN_OF_ALL]
    points[KNOWN_OF_ALL] = figures.mean().where(figures.count().eq(points["n"], axis=0))
    searched = trials[trials["phase"] == "search"].drop_duplicates([*options, "seed"])
    points["tried"] = searched.groupby(options, dropna=False).size()
    points = points[points["n"] > 1].reset_index()
    return points[COLUMNS].sort_values(["cell", "method", "multiplications"], ignore_index=True)


def all_repeated(trials: pd.DataFrame, points: pd.DataFrame, cost: str) -> bool:
    """Whether means over seeds stand for every trial of the search, and none failed or was stopped.

    Args:
        points: of `repeated`.
        cost: a column of theirs that all of them must have.
    """
    known = points[points[cost].notna()]
    return not known.empty and int(known["n"].sum()) == int((trials["phase"] == "search").sum())
