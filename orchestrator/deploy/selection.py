"""Selection of the trial to ship: the best within limits, of those that were confirmed."""

import math
from typing import NamedTuple

import pandas as pd

from orchestrator.analysis.pareto import frontier
from orchestrator.analysis.seed_means import confirmed
from orchestrator.formatting import accuracy, mean_and_deviation, millions, milliseconds


class Limits(NamedTuple):
    """What a network may cost, and what it must reach; None where that does not matter."""

    max_multiplications: float | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None


class Choice(NamedTuple):
    """A point that was chosen, and why."""

    point: pd.Series
    """trial_id, method, cell, n, accuracy, deviation, multiplications, latency_ms."""
    network: str
    """The trial_id whose network stands for it."""
    why: str


def candidates(trials: pd.DataFrame, objectives: dict[str, str]) -> pd.DataFrame:
    """Confirmed points; where nothing was confirmed, the Pareto fronts with n = 0.

    Columns: trial_id, method, cell, n, accuracy, deviation (missing where n < 2), multiplications,
    latency_ms. Accuracies are means on test images, or those of validation where n is 0.
    """
    points = confirmed(trials)
    if points.empty:
        points = frontier(trials, objectives).assign(n=0, test_deviation=math.nan)
        points = points.assign(test_accuracy=points["val_accuracy"])
    points = points.rename(columns={"test_accuracy": "accuracy", "test_deviation": "deviation"})
    columns = ["trial_id", "method", "cell", "n", "accuracy", "deviation"]
    return points[[*columns, "multiplications", "latency_ms"]]


def choose(trials: pd.DataFrame, objectives: dict[str, str], limits: Limits) -> Choice:
    """The most accurate point within the limits; under `min_accuracy` alone the cheapest.

    Raises:
        ValueError: if no point is within them; says how near the nearest ones come.
    """
    points = candidates(trials, objectives)
    if points.empty:
        raise ValueError("No trial completed, so there is nothing to choose from.")
    within = points
    for column, limit, sign in (
        ("multiplications", limits.max_multiplications, 1),
        ("latency_ms", limits.max_latency_ms, 1),
        ("accuracy", limits.min_accuracy, -1),
    ):
        if limit is not None:
            within = within[sign * within[column] <= sign * limit]
    if within.empty:
        raise ValueError(
            f"None of {len(points)} points is within {_said(limits)}. The cheapest has "
            f"{millions(points['multiplications'].min())} multiplications, the fastest takes "
            f"{milliseconds(points['latency_ms'].min())}, the most accurate reaches "
            f"{accuracy(points['accuracy'].max())}: relax a limit."
        )
    only_accuracy = limits == Limits(min_accuracy=limits.min_accuracy)
    cheapest = only_accuracy and limits.min_accuracy is not None
    order = ["multiplications", "accuracy"] if cheapest else ["accuracy", "multiplications"]
    ordered = within.sort_values(order, ascending=[cheapest, not cheapest])
    point = ordered.iloc[0]
    aim = "the fewest multiplications" if cheapest else "the most accurate"
    seeds = f"confirmed with {point['n']} fresh seed{'s' if point['n'] > 1 else ''}"
    kind = f"on test images, {seeds}" if point["n"] else "on validation images, not confirmed"
    why = (
        f"{aim} of {len(within)} within {_said(limits)}, of {len(points)} points; "
        f"{_accuracy(point)} {kind}, {millions(point['multiplications'])} multiplications, "
        f"{milliseconds(point['latency_ms'])} at batch 1."
    )
    if len(ordered) > 1:
        other = ordered.iloc[1]
        why += (
            f" Next: {other['trial_id']}, {_accuracy(other)}, {millions(other['multiplications'])}."
        )
    return Choice(point, _network(trials, point), why)


def _network(trials: pd.DataFrame, point: pd.Series) -> str:
    """Of the fresh seeds' networks the best on validation images: the test images choose none."""
    again = trials[(trials["confirms"] == point["trial_id"]) & (trials["status"] == "completed")]
    if again.empty:
        return str(point["trial_id"])
    return str(again.loc[again["val_accuracy"].idxmax(), "trial_id"])


def _accuracy(point: pd.Series) -> str:
    return f"accuracy {mean_and_deviation(point['accuracy'], point['deviation'])}"


def _said(limits: Limits) -> str:
    given = []
    if limits.max_multiplications is not None:
        given.append(f"{millions(limits.max_multiplications)} multiplications")
    if limits.max_latency_ms is not None:
        given.append(milliseconds(limits.max_latency_ms))
    if limits.min_accuracy is not None:
        given.append(f"an accuracy of {accuracy(limits.min_accuracy)} or more")
    return " and ".join(given) or "no limits"
