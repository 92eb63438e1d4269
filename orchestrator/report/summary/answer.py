"""Answer of a sweep, first of all: which method is best at half of the dense network's cost.

Every sentence is made from trials.csv and sweep.yaml alone.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from orchestrator.analysis.at_budget import (
    FAR_CHEAPER,
    HALF,
    AtHalf,
    at_half,
    best_of_each,
    in_some_seeds,
)
from orchestrator.analysis.curve import ROUNDING
from orchestrator.analysis.pareto import best_within
from orchestrator.analysis.seed_means import by_seed
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import margin_over_seeds, standard_error
from orchestrator.formatting import listed, mean_and_deviation, millions, percent
from orchestrator.report.tables.table import extent

HALF_OF_DENSE = "half of the dense network's multiplications"
CONTROL = "random_channels"


def answer(result: SweepResult) -> tuple[str, str]:
    """Which method is best at half of the dense network's multiplications: a headline, and more."""
    if not (result.searched["status"] == "completed").any():
        return "No trial completed, so there is no frontier.", ""
    if best_within(result.searched, HALF) is None:
        return f"No trial needs {HALF_OF_DENSE} or less.", ""
    return _searched_answer(result) if result.confirmed.empty else _confirmed_answer(result)


def _confirmed_answer(result: SweepResult) -> tuple[str, str]:
    """As `answer`, of test images and fresh seeds: each method's point is the one that the search
    would have chosen, so that the test images choose between methods alone."""
    points = result.confirmed
    # A prefix that a fresh seed chooses may cost more than the one that the search found.
    within = points[points["share"] <= HALF].set_index("trial_id", drop=False)
    rows = result.searched[result.searched["trial_id"].isin(within.index)]
    best: list[list[pd.Series]] = []  # of each cell, the most accurate first
    for cell in result.cells:
        chosen = best_of_each(rows[rows["cell"] == cell], ["method"], HALF)
        found = within.loc[chosen["trial_id"]].sort_values(
            "test_accuracy", ascending=False, kind="stable"
        )
        best += [[point for _, point in found.iterrows()]] if len(found) else []
    if not best:
        return f"No confirmed trial needs {HALF_OF_DENSE} or less.", ""
    n = max(int(ordered[0]["n"]) for ordered in best)
    seeds = "one fresh seed" if n == 1 else f"{n} fresh seeds"
    first, *others = max(best, key=lambda ordered: ordered[0]["test_accuracy"])
    reached = _test_accuracy(first)
    if len(result.cells) > 1:
        return (
            f"Most accurate on test images at {HALF_OF_DENSE}: "
            f"{_counted(result, [ordered[0]['method'] for ordered in best])}, "
            f"confirmed with {seeds}.",
            _best_of_all(first["method"], first["cell"], first["multiplications"], reached),
        )
    dense = points[points["method"] == "dense"]
    against = ""
    if not dense.empty:
        against = f" against {_test_accuracy(dense.iloc[0])} of the dense network"
    headline = (
        f"{first['method']} is the most accurate at {HALF_OF_DENSE}: "
        f"test accuracy {reached}{against}, confirmed with {seeds}."
    )
    cost, share = millions(first["multiplications"]), percent(first["share"])
    far = _far_cheaper(first["share"], {each["method"]: each["share"] for each in others})
    others = [each for each in others if each["method"] not in far]
    more = _beside_the_others(
        [first["method"]],
        first["test_accuracy"],
        {point["method"]: point["test_accuracy"] for point in others},
        [point["method"] for point in others if not _told_apart(result, first, point)],
        f"{seeds} and {first['test_images']:,} test images",
    )
    more += _not_compared(far)
    return headline, " ".join([f"It needs {cost} multiplications, {share} of dense.", *more])


def _far_cheaper(share: float, others: Mapping[str, float]) -> dict[str, float]:
    """Those of the others' shares of the dense cost that are too far below to be compared."""
    return {method: own for method, own in others.items() if share - own > FAR_CHEAPER + ROUNDING}


def _not_compared(far: Mapping[str, float]) -> list[str]:
    said = listed(f"{method} ({percent(share)})" for method, share in far.items()) if far else ""
    return [f"Tried at far lower cost only, and not compared here: {said}."] if said else []


def _told_apart(result: SweepResult, one: pd.Series, other: pd.Series) -> bool:
    """Whether two points differ by more than luck: of test images, and over the seeds."""
    images = [standard_error(row["test_accuracy"], row["test_images"]) for row in (one, other)]
    accuracies = [by_seed(result.trials, row["trial_id"]) for row in (one, other)]
    margin = math.hypot(*(2 * error for error in images), margin_over_seeds(*accuracies))
    return bool(100 * (one["test_accuracy"] - other["test_accuracy"]) >= margin)


def _test_accuracy(point: pd.Series) -> str:
    return mean_and_deviation(point["test_accuracy"], point["test_deviation"])


def _searched_answer(result: SweepResult) -> tuple[str, str]:
    """As `answer`, of validation images: each method by the best trial of every seed."""
    best = [found for cell in result.cells if (found := at_half(result.searched, cell))]
    if not best:
        return f"No method comes to {HALF_OF_DENSE} in every seed.", ""
    highest = [[each for each in found if each.accuracy == found[0].accuracy] for found in best]
    first = max((found[0] for found in best), key=lambda each: each.accuracy)
    cost, n = first.mean("multiplications"), max(found[0].n for found in best)
    mean = f" (mean of {first.n} seeds)" if first.n > 1 else ""
    reached = (
        f"validation accuracy {first.written('val_accuracy')}{mean} against the dense network's "
        f"{first.written('dense_val_accuracy')} before fine-tuning"
    )
    if len(result.cells) > 1:
        winners = [each.method for found in highest for each in found]
        by = f", by the mean of {n} seeds" if n > 1 else ""
        return (
            f"Most accurate at {HALF_OF_DENSE}: {_counted(result, winners)}{by}.",
            _best_of_all(first.method, first.cell, cost, reached),
        )
    names = [each.method for each in highest[0]]
    headline = (
        f"{listed(names)} {'are' if len(names) > 1 else 'is'} the most accurate at "
        f"{HALF_OF_DENSE}: {reached}."
    )
    needs = "That trial needs" if n == 1 else "Its trials need in the mean"
    more = [f"{needs} {millions(cost)} multiplications, {percent(first.share)} of dense."]
    if n > 1:
        tested = ""
        if math.isfinite(first.mean("test_accuracy")):
            tested = f"; on test images these come to {first.written('test_accuracy')}"
        more.append(f"Of each seed the most accurate trial so cheap counts{tested}.")
    far = _far_cheaper(first.share, {each.method: each.share for each in best[0]})
    others = [each for each in best[0][len(names) :] if each.method not in far]
    close = [each for each in others if not _told_apart_in_search(first, each)]
    images = extent(pd.concat([each.trials["validation_images"] for each in (first, *close)]))
    more += _beside_the_others(
        names,
        first.accuracy,
        {each.method: each.accuracy for each in others},
        [each.method for each in close],
        f"{f'{n} seeds and ' if n > 1 else ''}{images} validation images",
    )
    more += _not_compared(far)
    if some := in_some_seeds(result.searched, first.cell):
        more.append(f"So cheap in some seeds alone, and not compared here: {listed(some)}.")
    return headline, " ".join(more)


def _told_apart_in_search(first: AtHalf, other: AtHalf) -> bool:
    """Whether two methods differ by more than luck: of validation images, and over the seeds."""
    images = pd.concat([first.trials, other.trials])["validation_images"].min()
    margin = math.hypot(
        2 * standard_error(first.accuracy, images), margin_over_seeds(first.by_seed, other.by_seed)
    )
    behind = 100 * (first.accuracy - other.accuracy)
    return not behind < margin  # told apart where the number of images is not known


def _counted(result: SweepResult, winners: Sequence[str]) -> str:
    """l1_filter in 2 and vanilla in 1 of 3 settings"""
    ranked = [f"{method} in {count}" for method, count in Counter(winners).most_common()]
    return f"{listed(ranked)} of {len(result.cells)} settings"


def _best_of_all(method: str, cell: str, multiplications: float, reached: str) -> str:
    cost = millions(multiplications)
    return f"The best of all is {method} at {cell} with {cost} multiplications: {reached}."


def _beside_the_others(
    names: Sequence[str],
    reached: float,
    others: Mapping[str, float],
    close: Sequence[str],
    judged_by: str,
) -> list[str]:
    """Which methods are too close to the most accurate to tell apart, and where the control is.

    Args:
        names: the most accurate methods, which reached the same accuracy.
        others: the accuracies of the methods behind them.
        close: those of them that are not told apart.
        judged_by: seeds and images.
    """
    said = []
    if close:
        said.append(f"Too close to it for {judged_by} to tell apart: {listed(close)}.")
    if CONTROL in names:
        said.append("Removing channels at random is the control: no method is more accurate here.")
    elif CONTROL in others and CONTROL not in close:
        behind = 100 * (reached - others[CONTROL])
        said.append(f"The control, {CONTROL}, is {behind:.1f} points behind.")
    return said
