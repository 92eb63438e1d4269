"""Cautions before the comparison is trusted, from trials.csv and sweep.yaml alone."""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd

from orchestrator.analysis.uncertainty import standard_error
from orchestrator.formatting import accuracy, listed, percent
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import extent
from orchestrator.search.time_budget import spent

CONTROLS = {
    "dense": "the network that everything is measured against",
    "random_channels": "the control that a method must beat before its frontier says anything",
    "vanilla": "the same smaller network trained from scratch for as long",
}
PASSES = {"q_learning_epochs": "for Q-learning", "reward_epochs": "for rewards"}


def cautions(result: SweepResult) -> list[str]:
    """Cautions for whoever reads the comparison."""
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
        counts = listed(f"{name} {tries[name]}" for name in result.methods if tries[name])
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
        kinds = listed(
            f"{device}, {threads} thread" + "s" * (threads != 1)
            for device, threads in machines.to_numpy()
        )
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
        counts = listed(f"{name} {', '.join(map(str, each))}" for name, each in given.items())
        found.append(f"The methods were not given the same fine-tuning epochs: {counts}.")
    for column, what in PASSES.items():
        medians = rows.groupby("method", sort=False)[column].median()
        extra = [f"{name} {times:.1f}" for name, times in medians.items() if times > 0]
        if extra:
            found.append(
                f"Beside its epochs a median trial sent as many images as an epoch has through the "
                f"network {what}: {listed(extra)} times. The others needed none of that."
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
    completed = trials[trials["status"] == "completed"].dropna(subset=["validation_images"])
    if completed.empty:
        return None
    best, images = completed["val_accuracy"].max(), completed["validation_images"]
    errors = sorted({standard_error(best, number) for number in (images.max(), images.min())})
    if not math.isfinite(errors[0]):
        return None
    error, twice = (
        " to ".join(dict.fromkeys(f"{n * each:.1f}" for each in errors)) for n in (1, 2)
    )
    return (
        f"Accuracies are over {_validation_images(completed)}: at {accuracy(best)} one standard "
        f"error is {error} points, and methods closer than about {twice} points are not told apart."
    )


def _validation_images(trials: pd.DataFrame) -> str:
    """1,800 validation images; with the methods that are judged on fewer, where some are."""
    most = trials["validation_images"].max()
    usual = f"{most:,} validation images"
    fewer = trials[trials["validation_images"] < most]
    said = [
        f"those of {method} over {extent(rows['validation_images'])}"
        for method, rows in fewer.groupby("method", sort=False)
    ]
    return ", ".join([usual, *said])
