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

from orchestrator.analysis.curve import ROUNDING, SAME_COST, Curve, costs_in_common, mean_difference
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

    Where methods of a cell were given different numbers of tries, a hypervolume is of their curves
    at costs that they have in common (`_at_shared_costs`), and missing where a seed has none.
    """
    searched = trials[trials["phase"] == "search"]
    rows = []
    for cell in _by(searched, "cell"):
        groups = {str(own["method"].iloc[0]): own for own in _by(cell, "method")}
        tries = {
            method: {
                str(seed): shares(rows, objectives)
                for seed, rows in own.groupby("seed", dropna=False)
            }
            for method, own in groups.items()
        }
        counted = _counted(tries, objectives, chance(cell))
        for method, own in groups.items():
            completed = int((own["status"] == "completed").sum())
            tried = (own["cell"].iloc[0], method, len(tries[method]), len(own), completed)
            seeds = list(tries[method].values())
            covered = _hypervolumes(seeds, counted[method], objectives, chance(own))
            curves = [Curve.of(shares(seed, TRADE)) for seed in _by(own, "seed")]
            reached = np.mean([curve.at(np.array(BUDGETS)) for curve in curves], axis=0)
            rows.append((*tried, *covered, *reached))
    columns = ["cell", "method", "seeds", "tries", "completed", "hypervolume"]
    columns += ["hypervolume_low", "hypervolume_high", "hypervolume_by_seed", "outside"]
    columns += [f"val_accuracy_at_{100 * budget:.0f}" for budget in BUDGETS]
    return pd.DataFrame(rows, columns=columns)


def _hypervolumes(
    tries: list[np.ndarray],
    counted: list[np.ndarray],
    objectives: Mapping[str, str],
    chance: float,
) -> tuple[float, float, float, tuple[float, ...], str]:
    """Mean over seeds, its interval, each seed's, and by which objectives all lies outside.

    Args:
        tries: of each seed, as `shares` gives them.
        counted: what the hypervolume is of.
    """
    finite = _finite(np.concatenate(tries))
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


def _counted(
    tries: Mapping[str, Mapping[str, np.ndarray]], objectives: Mapping[str, str], chance: float
) -> dict[str, list[np.ndarray]]:
    """What each method's hypervolumes are of, seed by seed: all of its tries, or what is shared.

    Methods without a try that is better than the reference point are not asked for costs.
    """
    inside = [
        method
        for method, seeds in tries.items()
        if len(finite := _finite(np.concatenate(list(seeds.values()))))
        and not beyond_reference(finite, objectives, chance).any(axis=1).all()
    ]
    given = {max(map(len, tries[method].values())) for method in inside}
    if len(given) < 2 or "val_accuracy" not in objectives or not DENSE_COST.keys() & objectives:
        return {method: list(seeds.values()) for method, seeds in tries.items()}
    shared = {
        seed: _at_shared_costs({m: tries[m][seed] for m in inside if seed in tries[m]}, objectives)
        for seed in {seed for seeds in tries.values() for seed in seeds}
    }
    nothing = np.zeros((0, len(objectives)))
    return {
        method: [shared[seed].get(method, nothing) for seed in seeds]
        for method, seeds in tries.items()
    }


def _at_shared_costs(
    tries: Mapping[str, np.ndarray], objectives: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Points of one seed's methods at costs that all have in common, by the first cost.

    They are read from the methods' curves; where there are other objectives, they are the tries at
    these costs. Who has a cost in common with the fewest others is left out until there is one.
    """
    names = list(objectives)
    first = next(place for place, name in enumerate(names) if name in DENSE_COST)
    trade = [names.index("val_accuracy"), first]
    curves = {method: Curve.of(own[:, trade]) for method, own in tries.items()}
    while len(curves) > 1:
        costs = costs_in_common(*curves.values())
        if len(costs) and len(names) == 2:
            points = {m: np.empty((len(costs), 2)) for m in curves}
            for method, own in points.items():
                own[:, trade] = np.column_stack([curves[method].at(costs), costs])
            return points
        if len(costs):
            away = {m: abs(tries[m][:, [first]] - costs).min(axis=1) for m in curves}
            return {m: tries[m][away[m] <= SAME_COST + ROUNDING] for m in curves}
        partners = {
            one: sum(len(costs_in_common(curves[one], other)) > 0 for other in curves.values())
            for one in curves
        }
        del curves[min(reversed(partners), key=lambda method: partners[method])]
    return {}


def _finite(points: np.ndarray) -> np.ndarray:
    return points[np.isfinite(points).all(axis=1)]


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
