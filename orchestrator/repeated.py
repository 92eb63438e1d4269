"""What several seeds made of the same options: means over the seeds."""

from __future__ import annotations

import math

import pandas as pd

from orchestrator.frontier import TRADE, as_share, eligible

COSTS = ("multiplications", "nonzero_multiplications", "parameters", "latency_ms")
COLUMNS = [
    "trial_id", "cell", "method", "n", "val_accuracy", "val_deviation", "train_accuracy", "tested",
    "test_accuracy", "test_deviation", "share", *COSTS,
]  # fmt: skip


def repeated(trials: pd.DataFrame) -> pd.DataFrame:
    """A row for each method's options in each cell that completed with several seeds.

    By cell, method and multiplications. Columns: trial_id (the first of them), cell, method; n, the
    seeds; means over these of val_accuracy, train_accuracy, share (multiplications over the dense
    network's) and the costs; tested, the seeds whose networks met the test images, and the mean
    test_accuracy of these; val_deviation and test_deviation, sample standard deviations, the latter
    missing where tested is less than 2. What is not known of every seed is missing.
    """
    completed = eligible(trials, TRADE)
    options = [name for name in map(str, completed.columns) if "." in name]
    alike = completed.groupby(["cell", "method", *options], sort=False, dropna=False)
    rows = []
    for _, found in completed[alike["seed"].transform("nunique") > 1].groupby(
        alike.ngroup(), sort=False
    ):
        seeds = found.drop_duplicates("seed")
        first, tests = seeds.iloc[0], seeds["test_accuracy"].dropna()
        rows.append(
            {
                "trial_id": first["trial_id"],
                "cell": first["cell"],
                "method": first["method"],
                "n": len(seeds),
                "val_accuracy": seeds["val_accuracy"].mean(),
                "val_deviation": seeds["val_accuracy"].std(),
                "train_accuracy": _mean(seeds["train_accuracy"]),
                "tested": len(tests),
                "test_accuracy": tests.mean(),
                "test_deviation": tests.std(),
                "share": as_share(seeds, "multiplications").mean(),
                **{cost: _mean(seeds[cost]) for cost in COSTS},
            }
        )
    order = ["cell", "method", "multiplications"]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(order, ignore_index=True)


def all_repeated(trials: pd.DataFrame, points: pd.DataFrame, cost: str) -> bool:
    """Whether means over seeds stand for every completed trial of the search.

    Args:
        points: of `repeated`.
        cost: a column of theirs that all of them must have.
    """
    known = points[points[cost].notna()]
    return not known.empty and int(known["n"].sum()) == len(eligible(trials, TRADE))


def _mean(column: pd.Series) -> float:
    known = column.astype(float)
    return math.nan if known.isna().any() else float(known.mean())
