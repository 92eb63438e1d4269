"""Comparison of methods: hypervolumes, differences at equal cost, attainment surfaces.

A method's figures are means over seeds, each of that seed's own trials: the best of all seeds'
trials together would be the luckiest seed's. Intervals are of 95 %, over seeds (`t_interval`); one
seed has none. Methods are compared at costs that they were all tried at (`Curve`).
"""

import math
from collections.abc import Mapping
from itertools import permutations

import moocore
import numpy as np
import pandas as pd

from orchestrator.analysis.curve import ROUNDING, SAME_COST, Curve, mean_difference
from orchestrator.analysis.pareto import (
    BUDGETS,
    DENSE_COST,
    TRADE,
    beyond_reference,
    chance,
    shares,
    volume,
)
from orchestrator.analysis.uncertainty import t_interval


def compare_methods(trials: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Hypervolume and accuracy at equal cost of each cell and method, in order of appearance.

    Columns: cell, method, seeds, tries, completed; hypervolume, 0 where nothing completed, with its
    interval hypervolume_low and _high, and hypervolume_by_seed, a tuple; outside, the objectives in
    which no trial is better than the reference point, where the hypervolume is missing for that;
    and `val_accuracy_at_25`, `_50` and `_75`: validation accuracy at that percentage of the dense
    network's multiplications, missing where a seed's `Curve` has none there.

    Where methods of a cell were given different numbers of tries, a hypervolume is of the trials at
    costs that all of them tried, and missing where a seed has none.
    """
    searched = trials[trials["phase"] == "search"]
    rows = []
    for cell in _by(searched, "cell"):
        groups = {str(own["method"].iloc[0]): own for own in _by(cell, "method")}
        points = {
            method: [shares(seed, objectives) for seed in _by(own, "seed")]
            for method, own in groups.items()
        }
        counted = _at_shared_costs(points, objectives, chance(cell))
        for method, own in groups.items():
            completed = int((own["status"] == "completed").sum())
            tried = (own["cell"].iloc[0], method, len(points[method]), len(own), completed)
            covered = _hypervolumes(points[method], counted[method], objectives, chance(own))
            curves = [Curve.of(shares(seed, TRADE)) for seed in _by(own, "seed")]
            reached = np.mean([curve.at(np.array(BUDGETS)) for curve in curves], axis=0)
            rows.append((*tried, *covered, *reached))
    columns = ["cell", "method", "seeds", "tries", "completed", "hypervolume"]
    columns += ["hypervolume_low", "hypervolume_high", "hypervolume_by_seed", "outside"]
    columns += [f"val_accuracy_at_{100 * budget:.0f}" for budget in BUDGETS]
    return pd.DataFrame(rows, columns=columns)


def _hypervolumes(
    points: list[np.ndarray],
    counted: list[np.ndarray],
    objectives: Mapping[str, str],
    chance: float,
) -> tuple[float, float, float, tuple[float, ...], str]:
    """Mean over seeds, its interval, each seed's, and by which objectives all lies outside.

    Args:
        points: of each seed, as `shares` gives them.
        counted: those of them that count.
    """
    tried = np.concatenate(points)
    finite = tried[np.isfinite(tried).all(axis=1)]
    beyond = beyond_reference(finite, objectives, chance)
    unknown = (math.nan, math.nan, math.nan, ())
    if len(finite) and beyond.any(axis=1).all():
        # By each objective in which every trial is; by all in which some are, where there is none.
        chosen = beyond.all(axis=0) if beyond.all(axis=0).any() else beyond.any(axis=0)
        return *unknown, ", ".join(np.array(list(objectives))[chosen])
    if len(finite) and not all(map(len, counted)):
        return *unknown, ""
    found = tuple(volume(each, objectives, chance) for each in counted)
    return float(np.mean(found)), *t_interval(found), found, ""


def _at_shared_costs(
    points: Mapping[str, list[np.ndarray]], objectives: Mapping[str, str], chance: float
) -> dict[str, list[np.ndarray]]:
    """The tries of each method and seed that count: all, where methods were given equally many.

    Else those at costs that all methods tried: within `SAME_COST` of a try of theirs, in the first
    of the costs. Methods without a try that is better than the reference point are not asked.
    """
    inside = {}
    for method, seeds in points.items():
        tried = np.concatenate(seeds)
        finite = tried[np.isfinite(tried).all(axis=1)]
        kept = finite[~beyond_reference(finite, objectives, chance).any(axis=1)]
        if len(kept):
            inside[method] = kept
    given = {max(map(len, points[method])) for method in inside}
    costs = [place for place, name in enumerate(objectives) if name in DENSE_COST]
    if len(given) < 2 or not costs:
        return dict(points)
    first = costs[0]

    def shared(tries: np.ndarray) -> np.ndarray:
        away = [abs(tries[:, [first]] - own[:, first]).min(axis=1) for own in inside.values()]
        return tries[(np.array(away) <= SAME_COST + ROUNDING).all(axis=0)]

    return {method: [shared(seed) for seed in seeds] for method, seeds in points.items()}


def compare_pairs(trials: pd.DataFrame) -> pd.DataFrame:
    """How far one method is ahead of another at equal cost: a row for each ordered pair.

    Each seed says the mean difference of their curves (`mean_difference`), over its cells: methods
    met the same dense network and split of the images with it.

    Columns: method, other, difference (of validation accuracies, a fraction, mean over seeds),
    difference_low and _high (the interval), by_seed (a tuple) and seeds (how many). Pairs that
    share no cost with any seed are left out.
    """
    searched = trials[trials["phase"] == "search"]
    methods = list(dict.fromkeys(searched["method"]))
    curves = [
        [
            {str(method): Curve.of(shares(own, TRADE)) for method, own in cell.groupby("method")}
            for cell in _by(seed, "cell")
        ]
        for seed in _by(searched, "seed")
    ]
    rows = []
    for one, other in permutations(methods, 2):
        by_seed = []
        for cells in curves:
            found = [mean_difference(c[one], c[other]) for c in cells if {one, other} <= c.keys()]
            known = np.array(found)[np.isfinite(found)]
            by_seed += [float(known.mean())] if len(known) else []
        if by_seed:
            interval = t_interval(by_seed)
            rows.append((one, other, np.mean(by_seed), *interval, tuple(by_seed), len(by_seed)))
    columns = ["method", "other", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=[*columns, "by_seed", "seeds"])


def attainment(trials: pd.DataFrame) -> pd.DataFrame:
    """Empirical attainment surfaces: what one, half and all of a cell's seeds reach, by method.

    Columns: cell, method, seeds, reached_by (how many of them reach the point: 1, half rounded up,
    all), share (of the dense network's multiplications), val_accuracy. The points of one
    `reached_by` are the corners of a surface: what is dearer and less accurate than one of them is
    reached by so many seeds. A method with trials of one seed has none.

    Source: Grunert da Fonseca, Fonseca and Hall 2001, EMO 2001; computed by moocore.
    """
    rows = []
    searched = trials[trials["phase"] == "search"]
    for (cell, method), group in searched.groupby(["cell", "method"], sort=False, dropna=False):
        seeds = _by(group, "seed")
        if len(seeds) < 2:
            continue
        points = [own[np.isfinite(own).all(axis=1)] for own in (shares(s, TRADE) for s in seeds)]
        places = np.repeat(np.arange(len(points)), [len(own) for own in points])
        if len(places) == 0:
            continue
        for count in sorted({1, (len(seeds) + 1) // 2, len(seeds)}):
            for share, accuracy in _surface(np.concatenate(points), places, count):
                rows.append((cell, method, len(seeds), count, share, accuracy))
    columns = ["cell", "method", "seeds", "reached_by", "share", "val_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def _surface(points: np.ndarray, seeds: np.ndarray, count: int) -> list[tuple[float, float]]:
    """The corners (share, accuracy) of what at least `count` seeds reach."""
    n = len(np.unique(seeds))
    if n < count:  # a seed has no completed trial
        return []
    # Just short of the count's own percentage, so that its rounding does not ask for one more.
    corners = moocore.eaf(points * [-1, 1], seeds, percentiles=[100 * (count - 0.5) / n])
    return sorted((float(share), -float(negative)) for negative, share, _ in corners)


def _by(trials: pd.DataFrame, column: str) -> list[pd.DataFrame]:
    """Rows of each value in order of appearance; seeds in the order of their numbers."""
    return [rows for _, rows in trials.groupby(column, sort=column == "seed", dropna=False)]
