"""Answer of a sweep, first of all: which method is best at half of the dense network's cost.

Every sentence is made from trials.csv and sweep.yaml alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from orchestrator.analysis.at_budget import HALF, AtHalf, at_half, in_some_seeds
from orchestrator.analysis.confirmed import by_seed, confirmed
from orchestrator.analysis.pareto import best_within
from orchestrator.analysis.uncertainty import error_over_seeds, standard_error
from orchestrator.formatting import listed, mean_and_deviation, millions, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import extent


def answer(result: SweepResult) -> tuple[str, str]:
    """Which method is best at half of the dense network's multiplications: a headline, and more."""
    if not (result.searched["status"] == "completed").any():
        return "No trial completed, so there is no frontier.", ""
    if best_within(result.searched, HALF) is None:
        return "No trial needs half of the dense network's multiplications or less.", ""
    points = confirmed(result.trials)
    if not points.empty:
        return _confirmed_answer(result, points)
    best = {cell: found for cell in result.cells if (found := at_half(result.searched, cell))}
    if not best:
        return "No method comes to half of the dense network's multiplications in every seed.", ""
    if len(result.cells) > 1:
        return _answer_for_many_cells(result, best)
    (found,) = best.values()
    return _answer_for_one_cell(result, found)


def _confirmed_answer(result: SweepResult, points: pd.DataFrame) -> tuple[str, str]:
    """As `answer`, of test images and fresh seeds: each method's point is the one that the search
    would have chosen, so that the test images choose between methods alone."""
    by_id = points.set_index("trial_id", drop=False)
    # A prefix that a fresh seed chooses may cost more than the one that the search found.
    within = by_id.index[by_id["share"] <= HALF]
    rows = result.searched[result.searched["trial_id"].isin(within)]
    best: dict[str, list[pd.Series]] = {}
    for cell in result.cells:
        own = rows[rows["cell"] == cell].groupby("method", sort=False)
        chosen = [row for _, each in own if (row := best_within(each, HALF)) is not None]
        if chosen:
            found = [by_id.loc[row["trial_id"]] for row in chosen]
            best[cell] = sorted(found, key=lambda point: -point["test_accuracy"])
    if not best:
        return "No confirmed trial needs half of the dense network's multiplications or less.", ""
    seeds = _fresh_seeds(max(int(rows[0]["n"]) for rows in best.values()))
    if len(best) > 1 or len(result.cells) > 1:
        counts = Counter(rows[0]["method"] for rows in best.values())
        ranked = [f"{method} in {count}" for method, count in counts.most_common()]
        first = max((rows[0] for rows in best.values()), key=lambda row: row["test_accuracy"])
        return (
            "Most accurate on test images at half of the dense network's multiplications: "
            f"{listed(ranked)} of {len(result.cells)} settings, confirmed with {seeds}.",
            f"The best of all is {first['method']} at {first['cell']} with "
            f"{millions(first['multiplications'])} multiplications: {_test_accuracy(first)}.",
        )
    (ordered,) = best.values()
    first, *others = ordered
    dense = by_id[by_id["method"] == "dense"]
    against = ""
    if not dense.empty:
        against = f" against {_test_accuracy(dense.iloc[0])} of the dense network"
    headline = (
        f"{first['method']} is the most accurate at half of the dense network's multiplications: "
        f"test accuracy {_test_accuracy(first)}{against}, confirmed with {seeds}."
    )
    more = [
        f"It needs {millions(first['multiplications'])} multiplications, {percent(first['share'])} "
        "of dense."
    ]
    close = [row["method"] for row in others if not _told_apart(result, first, row)]
    if close:
        more.append(
            f"Too close to it for {seeds} and {first['test_images']:,} test images to tell apart: "
            f"{listed(close)}."
        )
    control = next((row for row in others if row["method"] == "random_channels"), None)
    if first["method"] == "random_channels":
        more.append("Removing channels at random is the control: no method is more accurate here.")
    elif control is not None and "random_channels" not in close:
        points_behind = 100 * (first["test_accuracy"] - control["test_accuracy"])
        more.append(f"The control, random_channels, is {points_behind:.1f} points behind.")
    return headline, " ".join(more)


def _told_apart(result: SweepResult, one: pd.Series, other: pd.Series) -> bool:
    """Whether two points differ by two standard errors: of test images, and over the seeds."""
    images = [standard_error(row["test_accuracy"], row["test_images"]) for row in (one, other)]
    accuracies = [by_seed(result.trials, row["trial_id"]) for row in (one, other)]
    error = math.hypot(*images, error_over_seeds(*accuracies))
    return bool(100 * (one["test_accuracy"] - other["test_accuracy"]) >= 2 * error)


def _test_accuracy(point: pd.Series) -> str:
    return mean_and_deviation(point["test_accuracy"], point["test_deviation"])


def _fresh_seeds(n: int) -> str:
    return "one fresh seed" if n == 1 else f"{n} fresh seeds"


def _winners(best: Sequence[AtHalf]) -> list[AtHalf]:
    """Those that share the highest accuracy."""
    highest = best[0].mean("val_accuracy")
    return [each for each in best if each.mean("val_accuracy") == highest]


def _answer_for_one_cell(result: SweepResult, best: Sequence[AtHalf]) -> tuple[str, str]:
    """As `answer`, of the only cell: each method by the best trial of every seed."""
    winners = _winners(best)
    first, names = winners[0], [each.method for each in winners]
    headline = (
        f"{listed(names)} {'are' if len(names) > 1 else 'is'} the most accurate at half of the "
        f"dense network's multiplications: {_against_dense(first)}."
    )
    cost = millions(first.mean("multiplications"))
    needs = "That trial needs" if first.n == 1 else "Its trials need in the mean"
    more = [f"{needs} {cost} multiplications, {percent(first.share)} of dense."]
    if first.n > 1:
        more.append(_of_the_seeds(first))
    others = best[len(winners) :]
    close = [each for each in others if not _told_apart_in_search(first, each)]
    if close:
        images = pd.concat([each.trials["validation_images"] for each in (first, *close)])
        seeds = f"{first.n} seeds and " if first.n > 1 else ""
        more.append(
            f"Too close to it for {seeds}{extent(images)} validation images to tell apart: "
            f"{listed(each.method for each in close)}."
        )
    if "random_channels" in names:
        more.append("Removing channels at random is the control: no method is more accurate here.")
    for each in others:
        if each.method == "random_channels" and each not in close:
            points = 100 * (first.mean("val_accuracy") - each.mean("val_accuracy"))
            more.append(f"The control, random_channels, is {points:.1f} points behind.")
    if some := in_some_seeds(result.searched, first.cell):
        more.append(f"So cheap in some seeds alone, and not compared here: {listed(some)}.")
    return headline, " ".join(more)


def _told_apart_in_search(first: AtHalf, other: AtHalf) -> bool:
    """Whether two methods differ by two standard errors: of validation images, and over seeds."""
    images = pd.concat([first.trials, other.trials])["validation_images"].min()
    error = math.hypot(
        standard_error(first.mean("val_accuracy"), images),
        error_over_seeds(first.by_seed, other.by_seed),
    )
    behind = 100 * (first.mean("val_accuracy") - other.mean("val_accuracy"))
    return not behind < 2 * error  # told apart where the number of images is not known


def _against_dense(best: AtHalf) -> str:
    mean = f" (mean of {best.n} seeds)" if best.n > 1 else ""
    return (
        f"validation accuracy {best.written('val_accuracy')}{mean} against the dense network's "
        f"{best.written('dense_val_accuracy')} before fine-tuning"
    )


def _of_the_seeds(best: AtHalf) -> str:
    """What the mean is of, and what the same networks came to on test images."""
    said = "Of each seed the most accurate trial so cheap counts"
    if math.isfinite(best.mean("test_accuracy")):
        said += f"; on test images these come to {best.written('test_accuracy')}"
    return f"{said}."


def _answer_for_many_cells(
    result: SweepResult, best: Mapping[str, Sequence[AtHalf]]
) -> tuple[str, str]:
    counts = Counter(each.method for found in best.values() for each in _winners(found))
    ranked = [f"{method} in {count}" for method, count in counts.most_common()]
    first = max((found[0] for found in best.values()), key=lambda each: each.mean("val_accuracy"))
    seeds = max(found[0].n for found in best.values())
    headline = (
        "Most accurate at half of the dense network's multiplications: "
        f"{listed(ranked)} of {len(result.cells)} settings"
        f"{f', by the mean of {seeds} seeds' if seeds > 1 else ''}."
    )
    more = (
        f"The best of all is {first.method} at {first.cell} with "
        f"{millions(first.mean('multiplications'))} multiplications: {_against_dense(first)}."
    )
    return headline, more
