"""Comparison of methods: hypervolumes, how often one is ahead of another, attainment surfaces.

A method's figures are means over seeds, each of that seed's own Pareto front: the best of all
seeds' trials together would be the luckiest seed's. Intervals are 95 % percentile bootstraps (Efron
and Tibshirani 1993, chapter 13). What is drawn again, with replacement, is what the sweep has
several of: seeds, or the tries of the only one. Drawn again, tries never find more than they found,
so that an interval over tries ends at the figure itself: it says what less luck would have left.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import permutations

import moocore
import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import BUDGETS, TRADE, accuracy_within, chance, shares, volume

DRAWS = 1000
CONFIDENCE = 0.95
COSTS = np.arange(1, 101) / 100  # at which methods are compared, as shares of the dense network's


def compare_methods(trials: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Hypervolume and accuracy at equal cost of each cell and method, in order of appearance.

    Columns: cell, method, seeds, tries, completed; hypervolume (0 where nothing completed), with
    its interval hypervolume_low and _high, missing where there is but one try; and
    `val_accuracy_at_25`, `_50` and `_75`: the best validation accuracy at or below that percentage
    of the dense network's multiplications, missing where a seed has no trial that is so cheap.
    """
    searched = trials[trials["phase"] == "search"]
    rows = []
    for (cell, method), group in searched.groupby(["cell", "method"], sort=False, dropna=False):
        seeds = _by(group, "seed")
        points = [shares(seed, objectives) for seed in seeds]
        covered = partial(volume, objectives=objectives, chance=chance(group))
        completed = int((group["status"] == "completed").sum())
        hypervolume = float(np.mean([covered(each) for each in points]))
        reached = [np.mean([accuracy_within(seed, each) for seed in seeds]) for each in BUDGETS]
        tried = (cell, method, len(seeds), len(group), completed)
        rows.append((*tried, hypervolume, *interval(points, covered), *reached))
    columns = ["cell", "method", "seeds", "tries", "completed", "hypervolume"]
    columns += ["hypervolume_low", "hypervolume_high"]
    columns += [f"val_accuracy_at_{100 * budget:.0f}" for budget in BUDGETS]
    return pd.DataFrame(rows, columns=columns)


def interval(
    seeds: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float]
) -> tuple[float, float]:
    """Bootstrap interval of a statistic's mean over seeds; NaN where nothing can be drawn.

    Args:
        seeds: the tries of each, (tries, ...). Several seeds are drawn, each with all its tries; of
            a single one the tries are.
    """
    if len(seeds) > 1:
        found = np.array([statistic(each) for each in seeds])
        return percentiles(found[_draws(len(found))].mean(axis=1))
    tries = seeds[0]
    if len(tries) < 2:
        return math.nan, math.nan
    return percentiles(np.array([statistic(tries[draw]) for draw in _draws(len(tries))]))


def percentiles(found: np.ndarray) -> tuple[float, float]:
    """The interval that holds the middle of what was found, (draws,); NaN among it is left out."""
    found = found[np.isfinite(found)]
    if len(found) == 0:
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def compare_pairs(trials: pd.DataFrame) -> pd.DataFrame:
    """How often one method is ahead of another at equal cost: a row for each ordered pair.

    At each percent of the dense network's multiplications that both can pay, the one whose best
    trial at or below it is more accurate is ahead; equals are neither ahead nor behind. Each cell
    and seed in which both ran says at what share of the costs that was so.

    Columns: method, other, ahead (the mean of these shares), ahead_low and ahead_high (cells and
    seeds drawn again, or the tries where there is but one of them), comparisons (how many cells and
    seeds). Pairs that share no cost are left out.
    """
    searched = trials[trials["phase"] == "search"]
    methods = list(dict.fromkeys(searched["method"]))
    tries = [
        {method: shares(rows, TRADE) for method, rows in context.groupby("method")}
        for context in _by(searched, ["cell", "seed"])
    ]
    stairs = [{method: best_at(own) for method, own in each.items()} for each in tries]
    again = {}
    if len(tries) == 1:
        again = {m: _drawn_stairs(own, stream) for stream, (m, own) in enumerate(tries[0].items())}
    rows = []
    for one, other in permutations(methods, 2):
        found = [_ahead(each[one], each[other]) for each in stairs if {one, other} <= each.keys()]
        ahead = np.array(found)[np.isfinite(found)]
        if len(ahead) == 0:
            continue
        drawn = np.zeros(0)
        if len(ahead) > 1:
            drawn = ahead[_draws(len(ahead))].mean(axis=1)
        elif again and max(len(tries[0][one]), len(tries[0][other])) > 1:
            drawn = _ahead(again[one], again[other])
        rows.append((one, other, float(ahead.mean()), *percentiles(drawn), len(ahead)))
    columns = ["method", "other", "ahead", "ahead_low", "ahead_high", "comparisons"]
    return pd.DataFrame(rows, columns=columns)


def best_at(points: np.ndarray) -> np.ndarray:
    """Best accuracy at or below each cost, (COSTS,); NaN below the cheapest.

    Args:
        points: (n, 2), accuracy and share of the dense multiplications; NaN where a try has none.
    """
    affordable = points[:, 1:] <= COSTS
    best: np.ndarray = np.where(affordable, points[:, :1], -math.inf).max(axis=0)
    return np.where(np.isfinite(best), best, math.nan)


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


def _by(trials: pd.DataFrame, columns: str | list[str]) -> list[pd.DataFrame]:
    return [rows for _, rows in trials.groupby(columns, sort=False, dropna=False)]


def _draws(n: int) -> np.ndarray:
    """(DRAWS, n) int: places of n things, drawn with replacement; the same ones each time."""
    return np.random.default_rng(n).integers(n, size=(DRAWS, n))


def _drawn_stairs(points: np.ndarray, stream: int) -> np.ndarray:
    """(DRAWS, COSTS): `best_at` of the tries, drawn again."""
    n = len(points)
    stairs = np.array([best_at(point[None]) for point in points])
    draws = np.random.default_rng([stream, n]).integers(n, size=(DRAWS, n))
    best = stairs[draws[:, 0]]
    for place in range(1, n):
        best = np.fmax(best, stairs[draws[:, place]])
    return best


def _ahead(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(...): the share of the costs both can pay at which `own` is ahead; NaN if there is none.

    Args:
        own, other: (..., COSTS), of `best_at`.
    """
    shared = (np.isfinite(own) & np.isfinite(other)).sum(axis=-1)
    ahead = (own > other).sum(axis=-1)
    return np.where(shared > 0, ahead / np.maximum(shared, 1), math.nan)
