"""Contenders: what each method has to offer within limits.

Where there are confirmed figures these alone count. A confirmed point was run with fresh seeds: its
accuracy and its cost are means of the same networks on test images. Of a method's points the one
enters that the fresh seeds' validation images prefer, so that the test images choose between
methods alone. Without confirmations it is the best trial of every seed on validation images, since
the best of all would be the luckiest seed's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import LATENCY_RATIOS, TRADE, eligible, is_within, with_ratios
from orchestrator.formatting import mean_and_deviation

FIGURES = (  # columns of trials.csv that answers need
    *("trial_id", "phase", "cell", "method", "dataset", "classes", "seed", "fine_tuning_epochs"),
    *("train_accuracy", "val_accuracy", "test_accuracy", "latency_ms", "multiplications"),
    *("multiplications_p5", "multiplications_p95"),
)
COSTS = ("multiplications", "share", "latency_ms", *LATENCY_RATIOS)


class Limits(NamedTuple):
    """What a network may cost at most, and what it must reach; None where that does not matter.

    A cost is within its limit if it is so as it is written: 50.05 % is 50 %.
    """

    share: float | None = None
    """Of the dense network's multiplications."""
    multiplications: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    """Over the dense network's latency, of one image."""
    min_accuracy: float | None = None

    @property
    def ask_for_cheapest(self) -> bool:
        """Whether an accuracy is all that is asked for; then the cheapest network is the best."""
        return self.min_accuracy is not None and self == Limits(min_accuracy=self.min_accuracy)

    def hold(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows within the limits, the best first; what lacks a figure is not within its limit.

        Args:
            rows: with accuracy, and with val_accuracy, by which they are ordered.
        """
        within = pd.Series(True, index=rows.index)
        if self.min_accuracy is not None:
            within &= rows["accuracy"] >= self.min_accuracy
        for name in COSTS[:4]:
            limit = getattr(self, name)
            if limit is not None:
                cost = rows[name].to_numpy(dtype=float, na_value=np.nan)
                within &= (
                    is_within(cost, limit)
                    if name in ("share", "latency_ratio")
                    else (cost <= limit) | (_in_three_figures(cost) <= float(f"{limit:.3g}"))
                )
        order, ascending = ["val_accuracy", "multiplications"], [False, True]
        if self.ask_for_cheapest:
            order, ascending = order[::-1], ascending[::-1]
        return rows[within].sort_values(order, ascending=ascending, kind="stable")


@dataclass(frozen=True, eq=False)
class Contender:
    """One method in one cell."""

    rows: pd.DataFrame
    """A row for each seed, of `judged`."""

    @property
    def method(self) -> str:
        return str(self.rows["method"].iloc[0])

    @property
    def cell(self) -> str:
        return str(self.rows["cell"].iloc[0])

    @property
    def confirmed(self) -> bool:
        """Whether its figures are of fresh seeds and test images."""
        return bool((self.rows["phase"] == "confirmation").all())

    @property
    def trial_id(self) -> str:
        """The search's trial that it goes by: of several seeds the best on validation images."""
        return str(self.rows["point"].iloc[0]) if self.confirmed else self.network

    @property
    def network(self) -> str:
        """The trial whose network is shipped: the test images choose none."""
        best = int(np.nanargmax(self.rows["val_accuracy"].to_numpy(float)))
        return str(self.rows["trial_id"].iloc[best])

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.rows)

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return self.mean("accuracy")

    @property
    def decides_per_image(self) -> bool:
        """Whether some images cost its networks more than others."""
        return bool((self.rows["multiplications_p5"] < self.rows["multiplications_p95"]).any())

    @property
    def by_seed(self) -> pd.Series:
        """The accuracies, by seed."""
        return pd.Series(self.rows["accuracy"].to_numpy(float), index=self.rows["seed"])

    def mean(self, column: str) -> float:
        """NaN where a seed's is missing."""
        return float(self.rows[column].astype(float).mean(skipna=False))

    def written(self, column: str) -> str:
        """0.743 ± 0.004, of an accuracy."""
        return mean_and_deviation(self.mean(column), float(self.rows[column].astype(float).std()))


def judged(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows that answers are made of: confirmations on test images, or else the search's trials.

    Columns beside `FIGURES`: point (the search's trial), accuracy and images (test or
    validation), share and both `LATENCY_RATIOS`. Multiplications are of the same images.
    """
    rows = trials[(trials["phase"] == "confirmation") & trials["test_accuracy"].notna()]
    if rows.empty:
        rows = eligible(trials, TRADE)
        rows = rows.assign(
            point=rows["trial_id"], accuracy=rows["val_accuracy"], images=rows["validation_images"]
        )
    else:
        rows = rows.sort_values("seed", kind="stable").assign(
            point=rows["confirms"],
            accuracy=rows["test_accuracy"],
            images=rows["test_images"],
            multiplications=rows["test_multiplications"],
        )
    return with_ratios(rows)[[*FIGURES, "point", "accuracy", "images", "share", *LATENCY_RATIOS]]


def contenders(trials: pd.DataFrame, limits: Limits) -> list[Contender]:
    """What each method offers within the limits in each cell, the best first; see `offers`."""
    return offers(judged(trials), seeds_tried(trials), limits)[0]


def seeds_tried(trials: pd.DataFrame) -> pd.Series:
    """How many seeds the search tried, by cell and method."""
    searched = trials[trials["phase"] == "search"]
    return searched.groupby(["cell", "method"])["seed"].nunique()


def offers(
    rows: pd.DataFrame, tried: pd.Series, limits: Limits
) -> tuple[list[Contender], list[Contender]]:
    """What each method offers within the limits in each cell, the best first.

    That is the most accurate, and the cheapest where an accuracy alone is asked for. The second
    part is of methods that have a trial within them in some of their seeds, and not in all.

    Args:
        rows: of `judged`.
        tried: of `seeds_tried`.
    """
    partly: list[Contender] = []
    if (rows["phase"] == "confirmation").any():
        whole = _confirmed(rows, limits)
    else:
        found = _best_of_seeds(rows, limits)
        whole = [each for each in found if each.n >= tried[each.cell, each.method]]
        partly = [each for each in found if each not in whole]

    def rank(each: Contender) -> tuple[float, float]:
        accuracy, share = -each.accuracy, each.mean("share")
        return (share, accuracy) if limits.ask_for_cheapest else (accuracy, share)

    return sorted(whole, key=rank), partly


def contender(trials: pd.DataFrame, trial_id: str) -> Contender:
    """One trial, by its confirmations where it has any on test images.

    Raises:
        ValueError: if there is no such trial, or it has not completed.
    """
    rows = judged(trials)
    again = rows[rows["point"] == trial_id]
    if again.empty:
        again = judged(trials[trials["trial_id"] == trial_id])
    if again.empty:
        known = trials["trial_id"] == trial_id
        status = trials["status"][known].iloc[0] if known.any() else ""
        said = f"it is {status}, and left no network" if status else "there is no such trial"
        raise ValueError(f"{trial_id}: {said}. trials.csv has every trial_id and its status.")
    return Contender(again)


def _confirmed(rows: pd.DataFrame, limits: Limits) -> list[Contender]:
    """Of each cell and method the point within the limits that validation images prefer."""
    costs = {name: (name, "mean") for name in ("accuracy", "val_accuracy", *COSTS)}
    cells = {"cell": ("cell", "first"), "method": ("method", "first")}
    points = rows.groupby("point", sort=False).agg(**cells, **costs)
    chosen = limits.hold(points).groupby(["cell", "method"], sort=False).head(1)
    by_point = dict(list(rows.groupby("point")))
    return [Contender(by_point[point]) for point in chosen.index]


def _best_of_seeds(rows: pd.DataFrame, limits: Limits) -> list[Contender]:
    """Of each cell and method every seed's best trial within the limits."""
    best = limits.hold(rows).groupby(["cell", "method", "seed"], sort=False, dropna=False).head(1)
    best = best.sort_values("seed", kind="stable")
    return [Contender(own) for _, own in best.groupby(["cell", "method"], sort=False)]


def _in_three_figures(cost: np.ndarray) -> np.ndarray:
    return np.array([float(f"{each:.3g}") for each in cost])
