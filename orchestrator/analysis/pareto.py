"""Pareto front of a sweep's trials, and the hypervolume that a method's front dominates.

A trial is on a front when no other is at least as good in every objective and better in one;
equal trials stay on it together. Only completed search trials with a value for every objective
enter. Confirmations run a front's trials again, so they do not compete with them.

Hypervolume and the accuracies at equal cost are in units of the dense network that each trial
started from, so that they compare across depths.
"""

import math
from collections.abc import Mapping

import moocore
import numpy as np
import pandas as pd

DENSE_COST = {  # each cost, and the column of the dense network's own
    "multiplications": "dense_multiplications",
    "nonzero_multiplications": "dense_multiplications",
    "parameters": "dense_parameters",
    "latency_ms": "dense_latency_ms",
    "bit_operations": "dense_bit_operations",
    "mean_bits": "dense_mean_bits",
    "footprint_bytes": "dense_footprint_bytes",
    "winograd_multiplications": "dense_winograd_multiplications",
}
LATENCY_RATIOS = {  # over the dense network's, measured in turn: of one image, and of a batch
    "latency_ratio": "latency_ms",
    "latency_ratio_batch128": "latency_ms_batch128",
}
DATA = ["dataset", "classes", "split"]  # what trials must share for their accuracies to compare
SAME_NETWORK = (  # figures in which two trials of one network do not differ
    *("train_accuracy", "val_accuracy", "val_accuracy_before_finetuning", "multiplications"),
    *("nonzero_multiplications", "parameters", "sparsity", "multiplications_per_class"),
)
BUDGETS = (0.25, 0.5, 0.75)  # shares of the dense network's multiplications
TRADE = {"val_accuracy": "maximize", "multiplications": "minimize"}


def eligible(trials: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Completed search trials that have a finite value for every objective."""
    completed = trials[(trials["status"] == "completed") & (trials["phase"] == "search")]
    values = completed[list(objectives)].to_numpy(dtype=float, na_value=math.nan)
    return completed[np.isfinite(values).all(axis=1)]


def non_dominated(trials: pd.DataFrame, objectives: Mapping[str, str]) -> np.ndarray:
    """Which rows are on the Pareto front of all, (n,) bool.

    Args:
        trials: n rows, every objective a number.
        objectives: column -> "maximize" or "minimize".
    """
    if trials.empty:
        return np.zeros(0, dtype=bool)
    points = trials[list(objectives)].to_numpy(dtype=float)
    maximise = [direction == "maximize" for direction in objectives.values()]
    return moocore.is_nondominated(points, maximise=maximise, keep_weakly=True)


def on_frontier_within(
    trials: pd.DataFrame, group: list[str], objectives: Mapping[str, str]
) -> pd.Series:
    """Which rows are on the Pareto front of their group.

    Args:
        trials: every objective is a number.
        group: rows that are equal in these columns compete with each other.
    """
    marks = pd.Series(False, index=trials.index)
    for _, rows in trials.groupby(group, sort=False, dropna=False):
        marks[rows.index] = non_dominated(rows, objectives)
    return marks


def frontier(trials: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Pareto fronts of every method in every cell, cheapest first.

    The column `on_overall_frontier` says which of them no trial on the same data beats, of whatever
    method and cell. Data sets are told apart by their name and their numbers of classes and of
    validation images, those that a method was rewarded on among them.
    """
    candidates = eligible(trials, objectives)
    own = on_frontier_within(candidates, ["cell", "method"], objectives)
    overall = on_frontier_within(with_split(candidates), DATA, objectives)
    rows = candidates.assign(on_overall_frontier=overall)[own]
    order = ["cell", "method", *(name for name in objectives if name in DENSE_COST), "trial_id"]
    return rows.sort_values(order, ignore_index=True)


def with_split(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with split: their validation images, with those that a method was rewarded on."""
    return trials.assign(split=trials["validation_images"] + trials["reward_images"].fillna(0))


def to_be_confirmed(trials: pd.DataFrame, objectives: Mapping[str, str]) -> list[str]:
    """Names of the trials on the Pareto front of their method and cell, each network once.

    Options that round to the same channels, say, give the same network: all its figures are equal.
    """
    once = frontier(trials, objectives).drop_duplicates(["cell", "method", "seed", *SAME_NETWORK])
    return list(once["trial_id"])


def to_be_tested(trials: pd.DataFrame, objectives: Mapping[str, str]) -> list[str]:
    """Names of the trials whose networks meet the test images.

    Those are the completed confirmations, where there are any. Else the trials on the front of
    their method, cell and seed: each seed by itself, so that a mean over seeds is not one over
    those that were lucky on their validation images. What is on a method's front is among them.
    """
    confirmed = trials[trials["phase"] == "confirmation"]
    if not confirmed.empty:
        return list(confirmed["trial_id"][confirmed["status"] == "completed"])
    candidates = eligible(trials, objectives)
    marks = on_frontier_within(candidates, ["cell", "method", "seed"], objectives)
    return list(candidates["trial_id"][marks])


def hypervolume(trials: pd.DataFrame, objectives: Mapping[str, str]) -> float:
    """Hypervolume of these trials' Pareto front, up to (chance, the dense network's costs).

    Costs are shares of the dense network's and reach from 0 to 1; val_accuracy reaches from chance,
    1 / classes, to 1. So 1 - chance is a perfect network for free. A trial that is worse than the
    reference in any objective adds nothing. All trials share one number of classes.

    Source: Zitzler and Thiele 1998, PPSN V; computed by moocore.
    """
    return volume(shares(trials, objectives), objectives, chance(trials))


def volume(points: np.ndarray, objectives: Mapping[str, str], chance: float) -> float:
    """Hypervolume, as of `hypervolume`, of points (n, objectives) as `shares` gives them."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return 0.0
    maximise = [direction == "maximize" for direction in objectives.values()]
    reference = _reference(objectives, chance)
    return float(moocore.hypervolume(points, ref=reference, maximise=maximise))


def growing_volume(points: np.ndarray, objectives: Mapping[str, str], chance: float) -> list[float]:
    """Hypervolume after each of the points (n, objectives), as `volume` of those up to it."""
    signs = _signs(objectives)
    front, volumes = np.empty((0, len(objectives))), [0.0]
    for point in points:
        better = (signs * front >= signs * point).all(axis=1)
        if np.isfinite(point).all() and not better.any():
            beaten = (signs * front <= signs * point).all(axis=1)
            front = np.vstack([front[~beaten], point])
            volumes.append(volume(front, objectives, chance))
        else:  # seconds, where a thousand tries change little
            volumes.append(volumes[-1])
    return volumes[1:]


def beyond_reference(
    points: np.ndarray, objectives: Mapping[str, str], chance: float
) -> np.ndarray:
    """(n, objectives) bool: in which objectives each point is no better than the reference point.

    Args:
        points: as `shares` gives them, all finite.
    """
    signs = _signs(objectives)
    worse: np.ndarray = signs * points <= signs * np.array(_reference(objectives, chance))
    return worse


def _signs(objectives: Mapping[str, str]) -> np.ndarray:
    return np.array([1 if each == "maximize" else -1 for each in objectives.values()])


def _reference(objectives: Mapping[str, str], chance: float) -> list[float]:
    return [chance if name == "val_accuracy" else 1.0 for name in objectives]


def shares(trials: pd.DataFrame, objectives: Mapping[str, str]) -> np.ndarray:
    """(n, objectives): costs as shares of the dense network's; NaN in rows that may not compete."""
    points = np.full((len(trials), len(objectives)), math.nan)
    candidates = eligible(trials, objectives)
    rows = trials.index.isin(candidates.index)
    points[rows] = np.column_stack([as_share(candidates, name) for name in objectives])
    return points


def chance(trials: pd.DataFrame) -> float:
    """Accuracy of guessing; NaN where no trial says how many classes there are."""
    return 1 / float(trials["classes"].max()) if trials["classes"].notna().any() else math.nan


def best_within(trials: pd.DataFrame, budget: float) -> pd.Series | None:
    """Most accurate trial within this share of the dense multiplications, if there is any.

    Of equally accurate ones the cheapest.
    """
    candidates = eligible(trials, TRADE)
    affordable = candidates[is_within(as_share(candidates, "multiplications"), budget)]
    if affordable.empty:
        return None
    order = affordable.sort_values(["val_accuracy", "multiplications"], ascending=[False, True])
    return order.iloc[0]


def with_ratios(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with share, of the dense multiplications, and both `LATENCY_RATIOS`."""
    ratios = {
        ratio: trials[own].astype(float) / trials[f"dense_{own}"].astype(float)
        for ratio, own in LATENCY_RATIOS.items()
    }
    return trials.assign(share=as_share(trials, "multiplications"), **ratios)


def is_within(ratios: np.ndarray, limit: float) -> np.ndarray:
    """Which shares or ratios are within a limit as they are written: 50.05 % is 50 %. (n,) bool."""
    written, most = (np.where(each < 0.01, each, np.round(each, 2)) for each in (ratios, limit))
    return np.asarray((ratios <= limit) | (written <= most))


def as_share(trials: pd.DataFrame, objective: str) -> np.ndarray:
    """An objective, a cost as a share of the dense network's, (n,); NaN where that is missing."""
    values = trials[objective].to_numpy(dtype=float, na_value=math.nan)
    if objective not in DENSE_COST:
        return values
    return values / trials[DENSE_COST[objective]].to_numpy(dtype=float, na_value=math.nan)
