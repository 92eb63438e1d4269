"""What a sweep found, in sentences: the answer first, then what to be careful about.

Every sentence is made from trials.csv and sweep.yaml alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from orchestrator.confirmed import by_seed, confirmed
from orchestrator.frontier import best_within
from orchestrator.notation import accuracy, millions, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.time_budget import spent

CONTROLS = {
    "dense": "the network that everything is measured against",
    "random_channels": "the control that a method must beat before its frontier says anything",
    "vanilla": "the same smaller network trained from scratch for as long",
}
PASSES = {"q_learning_epochs": "for Q-learning", "reward_epochs": "for rewards"}
HALF = 0.5


def answer(result: SweepResult) -> tuple[str, str]:
    """Which method is best at half of the dense network's multiplications: a headline, and more."""
    if not (result.searched["status"] == "completed").any():
        return "No trial completed, so there is no frontier.", ""
    best = {
        cell: rows
        for cell in result.cells
        if (rows := _best_of_each_method(result.searched[result.searched["cell"] == cell]))
    }
    if not best:
        return "No trial needs half of the dense network's multiplications or less.", ""
    points = confirmed(result.trials)
    if not points.empty:
        return _confirmed_answer(result, points)
    if len(result.cells) > 1:
        return _answer_for_many_cells(result, best)
    (rows,) = best.values()
    return _answer_for_one_cell(result, rows)


def _confirmed_answer(result: SweepResult, points: pd.DataFrame) -> tuple[str, str]:
    """As `answer`, of test images and fresh seeds: each method's point is the one that the search
    would have chosen, so that the test images choose between methods alone."""
    by_id = points.set_index("trial_id", drop=False)
    rows = result.searched[result.searched["trial_id"].isin(by_id.index)]
    best = {}
    for cell in result.cells:
        chosen = _best_of_each_method(rows[rows["cell"] == cell])
        if chosen:
            found = [by_id.loc[row["trial_id"]] for row in chosen]
            best[cell] = sorted(found, key=lambda point: -point["test_accuracy"])
    if not best:
        return "No confirmed trial needs half of the dense network's multiplications or less.", ""
    seeds = _seeds(max(int(rows[0]["n"]) for rows in best.values()))
    if len(best) > 1 or len(result.cells) > 1:
        counts = Counter(rows[0]["method"] for rows in best.values())
        ranked = [f"{method} in {count}" for method, count in counts.most_common()]
        first = max((rows[0] for rows in best.values()), key=lambda row: row["test_accuracy"])
        return (
            "Most accurate on test images at half of the dense network's multiplications: "
            f"{_listed(ranked)} of {len(result.cells)} settings, confirmed with {seeds}.",
            f"The best of all is {first['method']} at {first['cell']} with "
            f"{millions(first['multiplications'])} multiplications: {mean_and_deviation(first)}.",
        )
    (ordered,) = best.values()
    first, *others = ordered
    dense = by_id[by_id["method"] == "dense"]
    against = ""
    if not dense.empty:
        against = f" against {mean_and_deviation(dense.iloc[0])} of the dense network"
    headline = (
        f"{first['method']} is the most accurate at half of the dense network's multiplications: "
        f"test accuracy {mean_and_deviation(first)}{against}, confirmed with {seeds}."
    )
    more = [
        f"It needs {millions(first['multiplications'])} multiplications, {percent(first['share'])} "
        "of dense."
    ]
    close = [row["method"] for row in others if not _told_apart(result, first, row)]
    if close:
        more.append(
            f"Too close to it for {seeds} and {first['test_images']:,} test images to tell apart: "
            f"{_listed(close)}."
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
    differences = by_seed(result.trials, one["trial_id"]) - by_seed(
        result.trials, other["trial_id"]
    )
    over_seeds = 100 * differences.std() / math.sqrt(differences.count())
    images = [standard_error(row["test_accuracy"], row["test_images"]) for row in (one, other)]
    error = math.hypot(*images, 0.0 if math.isnan(over_seeds) else over_seeds)
    return bool(100 * (one["test_accuracy"] - other["test_accuracy"]) >= 2 * error)


def mean_and_deviation(point: pd.Series) -> str:
    """0.912 ± 0.004; the deviation only where there are several seeds."""
    deviation = point["test_deviation"]
    said = f" ± {accuracy(deviation)}" if math.isfinite(deviation) else ""
    return f"{accuracy(point['test_accuracy'])}{said}"


def _seeds(n: int) -> str:
    return "one fresh seed" if n == 1 else f"{n} fresh seeds"


def _best_of_each_method(trials: pd.DataFrame) -> list[pd.Series]:
    """Each method's best trial at half the cost; the most accurate first, then the cheapest."""
    found = [best_within(rows, HALF) for _, rows in trials.groupby("method", sort=False)]
    return sorted(
        (row for row in found if row is not None),
        key=lambda row: (-row["val_accuracy"], row["multiplications"]),
    )


def _winners(best: list[pd.Series]) -> list[pd.Series]:
    """Those that share the highest accuracy."""
    return [row for row in best if row["val_accuracy"] == best[0]["val_accuracy"]]


def _answer_for_one_cell(result: SweepResult, best: list[pd.Series]) -> tuple[str, str]:
    first, names = best[0], [row["method"] for row in _winners(best)]
    headline = (
        f"{_listed(names)} {'are' if len(names) > 1 else 'is'} the most accurate at half of the "
        f"dense network's multiplications: {_against_dense(first)}."
    )
    share = percent(first["multiplications"] / first["dense_multiplications"])
    more = [
        f"That trial needs {millions(first['multiplications'])} multiplications, {share} of dense."
    ]
    margin = 2 * standard_error(first["val_accuracy"], first["validation_images"])
    behind = {
        row["method"]: 100 * (first["val_accuracy"] - row["val_accuracy"])
        for row in best[len(names) :]
    }
    if close := [name for name, points in behind.items() if points < margin]:
        more.append(
            f"Too close to it for {first['validation_images']:,} validation images to tell apart: "
            f"{_listed(close)}."
        )
    if "random_channels" in names:
        more.append("Removing channels at random is the control: no method is more accurate here.")
    if "random_channels" in behind and "random_channels" not in close:
        more.append(
            f"The control, random_channels, is {behind['random_channels']:.1f} points behind."
        )
    return headline, " ".join(more)


def _against_dense(row: pd.Series) -> str:
    own, dense = accuracy(row["val_accuracy"]), accuracy(row["dense_val_accuracy"])
    return f"validation accuracy {own} against the dense network's {dense} before fine-tuning"


def _answer_for_many_cells(
    result: SweepResult, best: Mapping[str, list[pd.Series]]
) -> tuple[str, str]:
    counts = Counter(row["method"] for rows in best.values() for row in _winners(rows))
    ranked = [f"{method} in {count}" for method, count in counts.most_common()]
    first = max((rows[0] for rows in best.values()), key=lambda row: row["val_accuracy"])
    headline = (
        "Most accurate at half of the dense network's multiplications: "
        f"{_listed(ranked)} of {len(result.cells)} settings."
    )
    more = (
        f"The best of all is {first['method']} at {first['cell']} with "
        f"{millions(first['multiplications'])} multiplications: {_against_dense(first)}."
    )
    return headline, more


def cautions(result: SweepResult) -> list[str]:
    """What a reader must know before trusting the comparison."""
    found = [
        f"{name} is not in this sweep: {why}."
        for name, why in CONTROLS.items()
        if name not in result.sweep["methods"]
    ]
    failed = int((result.trials["status"] == "failed").sum())
    if failed:
        found.append(f"{failed} of {len(result.trials)} trials failed and are on no frontier.")
    if (hours := _hours_used_up(result)) is not None:
        found.append(hours)
    if (stopped := _stopped_early(result.searched)) is not None:
        found.append(stopped)
    tries = Counter(result.searched["method"])
    if len(set(tries.values())) > 1:
        counts = _listed(f"{name} {tries[name]}" for name in result.methods if tries[name])
        found.append(f"The methods did not get the same number of tries: {counts}.")
    found += _budgets(result)
    if (
        result.searched["seed"].nunique() == 1
        and not (result.trials["phase"] == "confirmation").any()
    ):
        found.append(
            "One seed: how much of a difference between methods is luck cannot be read from this "
            "sweep. With `confirm: {seeds: 3}` in its file, every point on a frontier is run again."
        )
    if (noise := _noise(result.searched)) is not None:
        found.append(noise)
    machines = result.searched[["device", "threads"]].dropna().drop_duplicates()
    if len(machines) > 1:
        kinds = _listed(f"{device}, {threads} threads" for device, threads in machines.to_numpy())
        found.append(f"Latencies were measured on different machines: {kinds}.")
    return found


def _budgets(result: SweepResult) -> list[str]:
    """What some methods were given and others not: epochs, and passes that no epoch counts."""
    rows = result.searched
    epochs = {
        name: tuple(sorted(set(rows.loc[rows["method"] == name, "fine_tuning_epochs"].dropna())))
        for name in result.methods
    }
    given = {name: each for name, each in epochs.items() if each}
    found = []
    if len(set(given.values())) > 1:
        counts = _listed(f"{name} {', '.join(map(str, each))}" for name, each in given.items())
        found.append(f"The methods were not given the same fine-tuning epochs: {counts}.")
    for column, what in PASSES.items():
        medians = rows.groupby("method", sort=False)[column].median()
        extra = [f"{name} {times:.1f}" for name, times in medians.items() if times > 0]
        if extra:
            found.append(
                f"Beside its epochs a median trial sent as many images as an epoch has through the "
                f"network {what}: {_listed(extra)} times. The others needed none of that."
            )
    return found


def _hours_used_up(result: SweepResult) -> str | None:
    """Whether the budget of hours ended the search."""
    hours = result.sweep["search"].get("hours")
    ran = result.searched[["started_at", "duration_s"]].dropna()
    if hours is None or spent(ran.itertuples(index=False, name=None)) < 3600 * hours:
        return None
    return f"The search's {hours:g} hours were used up after {len(result.searched)} trials."


def _stopped_early(trials: pd.DataFrame) -> str | None:
    """How many trials were ended at a rung, and what that saved."""
    stopped = trials[trials["status"] == "stopped_early"]
    if stopped.empty:
        return None
    judged = trials[trials["status"].isin(["completed", "stopped_early"])]
    saved = (stopped["fine_tuning_epochs"] - stopped["epochs_spent"]).sum()
    share = saved / judged["fine_tuning_epochs"].sum()
    return (
        f"{len(stopped)} of {len(trials)} trials were stopped early, as others of their study did "
        f"better by then, which saved {percent(share)} of the fine-tuning epochs; they are on no "
        "frontier."
    )


def _noise(trials: pd.DataFrame) -> str | None:
    """How far apart accuracies must be, from the number of validation images."""
    completed = trials[trials["status"] == "completed"]
    images, best = completed["validation_images"].min(), completed["val_accuracy"].max()
    error = standard_error(best, images)
    if not math.isfinite(error):
        return None
    return (
        f"Accuracies are over {images:,} validation images: at {accuracy(best)} one standard "
        f"error is {error:.1f} points, and methods closer than about {2 * error:.1f} points are "
        "not told apart."
    )


def standard_error(accuracy: float, images: float) -> float:
    """Of an accuracy over so many images, in points; NaN where either is missing.

    With two right and two wrong images added, since the plain formula has no error at all where
    every image is right. Source: Agresti and Coull 1998, The American Statistician 52.
    """
    if pd.isna(accuracy) or pd.isna(images):
        return math.nan
    share = (accuracy * images + 2) / (images + 4)
    return 100 * math.sqrt(share * (1 - share) / (images + 4))


def remarks(result: SweepResult) -> dict[str, str]:
    """What to know about each cost: its column -> a sentence or two."""
    return {
        "multiplications": "Counted from the operations that ran, for one image.",
        "nonzero_multiplications": _zeros_kept(result),
        "parameters": "Weights that the network stores, whether they are zero or not.",
        "latency_ms": _latency(result),
    }


def _zeros_kept(result: SweepResult) -> str:
    """What methods that zero weights in place still multiply."""
    completed = result.searched[result.searched["status"] == "completed"]
    sentences = []
    for method in result.methods:
        rows = completed[completed["method"] == method]
        held = rows[rows["nonzero_multiplications"] < 0.9 * rows["multiplications"]]
        if held.empty:
            continue
        run = (held["multiplications"] / held["dense_multiplications"]).median()
        nonzero = (held["nonzero_multiplications"] / held["dense_multiplications"]).median()
        ratio = (held["latency_ms"] / held["dense_latency_ms"]).median()
        latency = f" and took {ratio:.2f} times its latency" if math.isfinite(ratio) else ""
        sentences.append(
            f"{method} leaves its zeros in place and removes no channel: its median trial has "
            f"{percent(nonzero)} of the dense network's multiplications by weights that are not "
            f"zero, but ran {percent(run)} of them{latency}."
        )
    if not sentences:
        return (
            "No method here leaves many zeros in place, so these are the multiplications that ran."
        )
    return " ".join([*sentences, "Only hardware that skips zeros would gain from them."])


def _latency(result: SweepResult) -> str:
    """Whether fewer multiplications were faster."""
    caution = "Counted multiplications are not time: the batch, the threads and the machine matter."
    completed = result.searched[result.searched["status"] == "completed"]
    cheap = completed[completed["multiplications"] <= HALF * completed["dense_multiplications"]]
    ratios = (cheap["latency_ms"] / cheap["dense_latency_ms"]).dropna()
    if ratios.empty:
        return caution
    slower = int((ratios > 1).sum())
    return (
        f"{len(ratios)} trials at half of the dense multiplications or less took "
        f"{ratios.median():.2f} times the dense network's latency at batch 1 in the median "
        f"({ratios.min():.2f} to {ratios.max():.2f}); {slower or 'none'} of them "
        f"{'was' if slower < 2 else 'were'} slower than it. {caution}"
    )


def _listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
