"""What a sweep found, in sentences: the answer first, then what to be careful about.

Every sentence is made from trials.csv and sweep.yaml alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from orchestrator.frontier import best_within
from orchestrator.notation import accuracy, millions, percent
from orchestrator.time_budget import spent
from orchestrator.trials_table import read_trials

CONTROLS = {
    "dense": "the network that everything is measured against",
    "random_channels": "the control that a method must beat before its frontier says anything",
    "vanilla": "the same smaller network trained from scratch for as long",
}
HALF = 0.5


@dataclass(frozen=True)
class SweepResult:
    """A run folder as it is read: the sweep file as resolved, and a row for every trial."""

    sweep: Mapping[str, Any]
    trials: pd.DataFrame

    @staticmethod
    def read(folder: Path) -> SweepResult:
        """Raises FileNotFoundError if `folder` is no run folder."""
        sweep = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
        return SweepResult(sweep, read_trials(folder / "trials.csv"))

    @property
    def objectives(self) -> dict[str, str]:
        return self.sweep["objectives"]

    @cached_property
    def searched(self) -> pd.DataFrame:
        """The trials of the search, in the order in which they ended."""
        return self.trials[self.trials["phase"] == "search"]

    @cached_property
    def methods(self) -> list[str]:
        """In the sweep file's order."""
        return list(dict.fromkeys([*self.sweep["methods"], *self.trials["method"]]))

    @cached_property
    def cells(self) -> list[str]:
        """The settings of the shared grid that have trials, depth=8 before depth=12."""
        return sorted(self.searched["cell"].unique(), key=_natural)

    def settings(self, row: pd.Series) -> str:
        """The options by which a trial differs from others of its method: keep_ratio 0.52."""
        return ", ".join(
            f"{name.removeprefix(row['method'] + '.')} {_short(row[name])}"
            for name in self._varying[row["method"]]
            if not pd.isna(row[name])
        )

    @cached_property
    def _varying(self) -> dict[str, list[str]]:
        """Method -> the columns of its options that are not the same in all its trials."""
        columns = [str(column) for column in self.trials.columns]
        return {
            str(method): [
                name
                for name in columns
                if name.startswith(f"{method}.") and rows[name].nunique(dropna=False) > 1
            ]
            for method, rows in self.trials.groupby("method")
        }


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
    if len(result.cells) > 1:
        return _answer_for_many_cells(result, best)
    (rows,) = best.values()
    return _answer_for_one_cell(result, rows)


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
    margin = 2 * _standard_error(first["val_accuracy"], first["validation_images"])
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
    if result.searched["seed"].nunique() == 1:
        found.append(
            "One seed: how much of a difference between methods is luck cannot be read from this "
            "sweep."
        )
    if (noise := _noise(result.searched)) is not None:
        found.append(noise)
    machines = result.searched[["device", "threads"]].dropna().drop_duplicates()
    if len(machines) > 1:
        kinds = _listed(f"{device}, {threads} threads" for device, threads in machines.to_numpy())
        found.append(f"Latencies were measured on different machines: {kinds}.")
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
    error = _standard_error(best, images)
    if not math.isfinite(error):
        return None
    return (
        f"Accuracies are over {images:,} validation images: at {accuracy(best)} one standard "
        f"error is {error:.1f} points, and methods closer than about {2 * error:.1f} points are "
        "not told apart."
    )


def _standard_error(accuracy: float, images: float) -> float:
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


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Sorts the numbers inside names as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(False, float(p), "") if p[:1].isdigit() else (True, 0.0, p) for p in parts]
