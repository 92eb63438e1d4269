"""Cautions before the comparison is trusted, remarks on each cost, and trials that failed.

They are made from trials.csv and sweep.yaml alone.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import pandas as pd

from orchestrator.analysis.asked_budget import missed_budgets
from orchestrator.analysis.decision import HALF
from orchestrator.analysis.pareto import is_within, with_ratios
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.time_spent import time_spent
from orchestrator.analysis.uncertainty import standard_error
from orchestrator.formatting import accuracy, extent, listed, percent, ratio
from orchestrator.report.tables.table import number

CONTROLS = {
    "dense": "the network that everything is measured against",
    "random_channels": "the control that a method must beat before its frontier says anything",
    "vanilla": "the same smaller network trained from scratch for as long",
}
PASSES = {
    "q_learning_epochs": "for Q-learning",
    "reward_epochs": "for rewards",
    "statistics_epochs": "for statistics of channels",
}


def cautions(result: SweepResult) -> Iterator[str]:
    """Cautions for whoever reads the comparison."""
    for name, why in CONTROLS.items():
        if name not in result.sweep["methods"]:
            yield f"{name} is not in this sweep: {why}."
    if "cascade" in result.sweep["methods"] and "cascade_random" not in result.sweep["methods"]:
        yield "cascade_random is not in this sweep: what cascade gains by knowing whom to look at."
    if result.apart:
        yield (
            "The sweeps differ in a shared section of their files or in their dense networks, so "
            "each has panels of its own."
        )
    if len(set(result.data_of.values())) > 1:
        yield "Accuracies on different data are not compared: no axis and no frontier holds both."
    failed = int((result.trials["status"] == "failed").sum())
    if failed:
        yield f"{failed} of {len(result.trials)} trials failed and are on no frontier."
    hours = result.sweep["search"].get("hours")
    ran = result.searched[["started_at", "duration_s"]].dropna()
    if hours is not None and time_spent(ran.itertuples(index=False, name=None)) >= 3600 * hours:
        yield f"The search's {hours:g} hours were used up after {len(result.searched)} trials."
    yield from _stopped_early(result.searched)
    yield from _budgets(result)
    confirmed = (result.trials["phase"] == "confirmation").any()
    if result.n_seeds == 1 and not confirmed:
        yield (
            "One seed: how much of a difference between methods is luck cannot be read from this "
            "sweep. With `confirm: {seeds: 3}` in its file, every point on a frontier is run again."
        )
    if missed := missed_budgets(result.trials):
        yield f"Budgets missed, shares of the dense multiplications: {'; '.join(missed)}."
    yield from _noise(result.searched)
    yield from _slower_by_deciding(result)
    machines = result.searched[["device", "threads"]].dropna().drop_duplicates()
    if len(machines) > 1:
        kinds = listed(
            f"{device}, {threads} thread" + "s" * (threads != 1)
            for device, threads in machines.to_numpy()
        )
        yield f"Latencies were measured on different machines: {kinds}."


def _budgets(result: SweepResult) -> Iterator[str]:
    """What some methods were given and others not: tries, epochs, and passes beside the epochs."""
    rows = result.searched
    tries = Counter(rows["method"])
    counts = {name: str(tries[name]) for name in result.methods if tries[name] and name != "dense"}
    if len(set(counts.values())) > 1:
        yield f"The methods did not get the same number of tries: {_each(counts)}."
    epochs = rows.groupby("method")["fine_tuning_epochs"].agg(lambda own: sorted(set(own.dropna())))
    given = {
        name: ", ".join(map(str, epochs[name]))
        for name in result.methods
        if len(epochs.get(name, []))
    }
    if len(set(given.values())) > 1:
        yield f"The methods were not given the same fine-tuning epochs: {_each(given)}."
    yield from _trained_more(result)
    for column, what in PASSES.items():
        medians = rows.groupby("method", sort=False)[column].median()
        extra = [f"{name} {times:.1f}" for name, times in medians.items() if times > 0]
        if extra:
            yield (
                f"Extra compute {what}, in epochs of forward passes (median trial): "
                f"{listed(extra)}. The others used none."
            )


def _each(values: Mapping[str, str]) -> str:
    """Methods with their values; what most of them have is said once."""
    commonest, times = Counter(values.values()).most_common(1)[0]
    if 2 * times <= len(values):
        return listed(f"{name} {value}" for name, value in values.items())
    others = [f"{name} {value}" for name, value in values.items() if value != commonest]
    return listed([*others, f"each of the other methods {commonest}"])


def _trained_more(result: SweepResult) -> Iterator[str]:
    """Methods whose trials train for more epochs in sum than others'."""
    medians = result.searched.groupby("method")["training_epochs"].median().dropna()
    if medians.empty or medians.max() == medians.min():
        return
    more = medians[medians > medians.min()]
    epochs = listed(f"{name} {more[name]:.0f}" for name in result.methods if name in more)
    yield (
        f"Some methods trained for more epochs in sum than the {medians.min():.0f} of others: "
        f"{epochs}. Compare `training_multiplications` in trials.csv before their accuracies."
    )


def _stopped_early(trials: pd.DataFrame) -> Iterator[str]:
    """How many trials were ended at a rung, and what that saved."""
    stopped = trials[trials["status"] == "stopped_early"]
    judged = trials[trials["status"].isin(["completed", "stopped_early"])]
    if not stopped.empty:
        saved = (stopped["fine_tuning_epochs"] - stopped["epochs_spent"]).sum()
        share = saved / judged["fine_tuning_epochs"].sum()
        yield (
            f"{len(stopped)} of {len(trials)} trials were stopped early, as others of their study "
            f"did better by then. They are on no frontier. It saved {percent(share)} of the "
            "fine-tuning epochs."
        )


def _noise(trials: pd.DataFrame) -> Iterator[str]:
    """How far apart accuracies must be, from the number of validation images."""
    completed = trials[trials["status"] == "completed"].dropna(subset=["validation_images"])
    best, images = completed["val_accuracy"].max(), completed["validation_images"]
    errors = sorted({standard_error(best, number) for number in (images.max(), images.min())})
    if not math.isfinite(errors[0]):
        return
    # Two of them to either side of both accuracies, as `told_apart` has it.
    error, apart = (
        " to ".join(dict.fromkeys(f"{n * each:.1f}" for each in errors)) for n in (1, 8**0.5)
    )
    fewer = completed[images < images.max()].groupby("method", sort=False)["validation_images"]
    those = [f", those of {method} over {extent(own.dropna())}" for method, own in fewer]
    yield (
        f"Accuracies are over {images.max():,} validation images{''.join(those)}. At "
        f"{accuracy(best)} one standard error is {error} points. So methods closer than about "
        f"{apart} points cannot be told apart."
    )


def remarks(result: SweepResult) -> dict[str, str]:
    """Remarks on each cost: its column -> a sentence or two."""
    return {
        "multiplications": "Counted from the operations that ran, for one image.",
        "nonzero_multiplications": _zeros_kept(result),
        "parameters": "Weights that the network stores, whether they are zero or not.",
        "latency_ratio": _latency(result, "latency_ratio"),
        "latency_ratio_batch128": _latency(result, "latency_ratio_batch128"),
        "bit_operations": "Multiplications of one image, each times the bits of both factors, as "
        "the numbers themselves show them. Only a machine that multiplies few bits faster gains "
        "from that.",
        "mean_bits": "The mean over all layers' weights and inputs; 32 where they lie on no grid.",
        "footprint_bytes": "What the parameters take, the weights with their bits.",
        "winograd_multiplications": "Of 3x3 convolutions of stride 1 in the Winograd domain "
        "F(2x2, 3x3), of other layers directly, both with non-zero weights alone. They are no "
        "multiplications that ran, and shares are of the dense network run in the same way.",
    }


def _zeros_kept(result: SweepResult) -> str:
    """What methods that zero weights in place still multiply."""
    completed = result.searched[result.searched["status"] == "completed"]
    held = completed[completed["nonzero_multiplications"] < 0.9 * completed["multiplications"]]
    ratios = pd.DataFrame(
        {
            "ran": held["multiplications"] / held["dense_multiplications"],
            "nonzero": held["nonzero_multiplications"] / held["dense_multiplications"],
            "latency": held["latency_ms"] / held["dense_latency_ms"],
        }
    )
    medians = ratios.groupby(held["method"]).median().astype(float)
    if medians.empty:
        return (
            "No method here leaves many zeros in place, so these are the multiplications that ran."
        )
    sentences = []
    known = [method for method in result.methods if method in medians.index]
    for method, ran, nonzero, took in medians.loc[known].itertuples(name=None):
        latency = f", in {took:.2f} times the dense latency" if math.isfinite(took) else ""
        sentences.append(
            f"{method} leaves its zeros in place and removes no channel. In its median trial "
            f"{percent(nonzero)} of the dense network's multiplications have a weight that is not "
            f"zero, but {percent(ran)} ran{latency}."
        )
    return " ".join([*sentences, "Only hardware that skips zeros would gain from them."])


def _latency(result: SweepResult, column: str) -> str:
    """Whether fewer multiplications were faster.

    Args:
        column: of `LATENCY_RATIOS`.
    """
    images = "one image" if column == "latency_ratio" else "128 images"
    caution = (
        f"The latency of {images}, divided by the dense network's. Both are measured in turn. "
        "Multiplications are not time: the batch, the threads and the machine matter too."
    )
    completed = with_ratios(result.searched[result.searched["status"] == "completed"])
    ratios = completed.loc[is_within(completed["share"].to_numpy(), HALF), column].dropna()
    if ratios.empty:
        return caution
    slower = int((ratios > 1).sum())
    return (
        f"{len(ratios)} trials have at most half of the dense multiplications. Their median "
        f"latency is {ratios.median():.2f} times the dense network's ({ratios.min():.2f} to "
        f"{ratios.max():.2f}); {slower or 'none'} of them {'is' if slower < 2 else 'are'} slower "
        f"than it. {caution}"
    )


def _slower_by_deciding(result: SweepResult) -> Iterator[str]:
    """Methods that decide per image, where that makes them slower than the dense network."""
    completed = with_ratios(result.searched[result.searched["status"] == "completed"])
    deciding = completed[completed["multiplications_p5"] < completed["multiplications_p95"]]
    for method, own in deciding.groupby("method", sort=False):
        one, many = own["latency_ratio"].median(), own["latency_ratio_batch128"].median()
        slower = [
            f"{ratio(each)} times its latency for {images}"
            for each, images in ((one, "one image"), (many, "128 images"))
            if each > 1
        ]
        if slower:
            yield (
                f"{method} decides per image and is slower than the dense network here: "
                f"{listed(slower)} (median of {len(own)} trials)."
            )


def failures(result: SweepResult) -> list[tuple[str, list[str], str]]:
    """Trials that enter no Pareto front, by the first line of their error, the commonest first.

    Those that failed or were lost, and those that lack a finite figure for an objective: that line,
    the trials' names, and the whole error of the first of them.
    """
    rows = result.trials[~result.trials["status"].isin(["completed", "stopped_early"])]
    texts = dict(zip(rows["trial_id"], rows["error"].fillna(rows["status"]), strict=True))
    completed = result.trials[result.trials["status"] == "completed"]
    for _, row in completed.iterrows():
        unknown = [name for name in result.objectives if not math.isfinite(number(row[name]))]
        if unknown:
            texts[row["trial_id"]] = f"completed without a number for {', '.join(unknown)}"
    groups: dict[str, list[str]] = {}
    for trial_id, text in texts.items():
        groups.setdefault(str(text).split("\n")[0], []).append(trial_id)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(reason, names, str(texts[names[0]])) for reason, names in ordered]
