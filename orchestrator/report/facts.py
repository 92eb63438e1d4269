"""The facts of a sweep beside its tables: its key figures, its failures, how it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.analysis.at_budget import at_half
from orchestrator.formatting import accuracy, duration, millions
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.table import extent, number


@dataclass(frozen=True)
class Failure:
    """Trials that ended with the same error."""

    reason: str
    trial_ids: list[str]
    text: str
    """The whole error of the first of them."""


@dataclass(frozen=True)
class Figure:
    """One large number, with what it is and a word about it."""

    label: str
    value: str
    detail: str


def key_figures(result: SweepResult) -> list[Figure]:
    """What the sweep comes down to."""
    trials = result.trials
    completed = int((trials["status"] == "completed").sum())
    figures = [
        Figure("Trials completed", f"{completed:,}", f"of {len(trials):,}"),
        Figure("Work", duration(trials["duration_s"].sum()), "summed over the trials"),
    ]
    dense = trials.dropna(subset=["dense_val_accuracy", "dense_multiplications"])
    if not dense.empty:
        # On all validation images, where a row has that: some methods are judged on a part of them.
        rewarding = dense["reward_images"].fillna(0)
        dense = dense[rewarding == rewarding.min()]
        accuracies, costs = dense["dense_val_accuracy"], dense["dense_multiplications"]
        figures.insert(
            0,
            Figure(
                "Dense network, validation",
                _between(accuracies.min(), accuracies.max(), accuracy),
                f"{_between(costs.min(), costs.max(), millions)} multiplications",
            ),
        )
    best = [found[0] for cell in result.cells if (found := at_half(result.searched, cell))]
    if best:
        first = max(best, key=lambda each: each.mean("val_accuracy"))
        seeds = f", mean of {first.n} seeds" if first.n > 1 else ""
        figures.insert(
            0,
            Figure(
                "Best at half the cost, validation",
                accuracy(first.mean("val_accuracy")),
                f"{first.method}, {millions(first.mean('multiplications'))}{seeds}",
            ),
        )
    return figures


def failures(result: SweepResult) -> list[Failure]:
    """The trials that enter no frontier, by the first line of their error, the commonest first.

    Those that failed or were lost, and those that lack a finite figure for an objective.
    """
    rows = result.trials[~result.trials["status"].isin(["completed", "stopped_early"])]
    texts = dict(
        zip(
            rows["trial_id"],
            rows["error"].where(rows["error"].notna(), rows["status"]),
            strict=True,
        )
    )
    completed = result.trials[result.trials["status"] == "completed"]
    for _, row in completed.iterrows():
        unknown = [name for name in result.objectives if not math.isfinite(number(row[name]))]
        if unknown:
            texts[row["trial_id"]] = f"completed without a number for {', '.join(unknown)}"
    groups: dict[str, Failure] = {}
    for trial_id, text in texts.items():
        reason = str(text).split("\n")[0]
        group = groups.setdefault(reason, Failure(reason, [], str(text)))
        group.trial_ids.append(trial_id)
    return sorted(groups.values(), key=lambda group: -len(group.trial_ids))


def provenance(result: SweepResult) -> list[tuple[str, str]]:
    """How the sweep was made: (what, value)."""
    sweep, trials = result.sweep, result.trials
    search = sweep.get("search", {})
    facts = {
        "Data": _settings(sweep["data"]),
        "Validation images": extent(trials["validation_images"]),
        "Classes": extent(trials["classes"]),
        "Backbone": _settings(sweep["backbone"]),
        "Training": _settings(sweep["training"]),
        "Fine-tuning": _settings(sweep.get("fine_tuning", {})),
        "Objectives": _settings(sweep["objectives"]),
        "Search": _settings(search),
        "Early stopping": _settings(sweep.get("early_stopping") or {}),
        "Seeds": ", ".join(map(str, sweep.get("seeds", []))),
        "Trials": f"{len(trials)}, {duration(trials['duration_s'].sum())} of work in total",
        "Hardware": _values(trials["device"]),
        "Threads a trial": _values(trials["threads"]),
        "torch": _values(trials["torch_version"]),
        "Code": _values(trials["code_version"]),
        "Started": _values(trials["started_at"].dropna().sort_values().head(1)),
    }
    return [(name, value) for name, value in facts.items() if value]


def _between(low: float, high: float, write: Callable[[float], str]) -> str:
    """0.740, or 0.740 to 0.823"""
    return write(low) if write(low) == write(high) else f"{write(low)} to {write(high)}"


def _settings(section: Mapping[str, Any]) -> str:
    """conv, depth 4 | 6 | 8"""
    given = {name: value for name, value in section.items() if value is not None}
    return ", ".join(
        _option(value) if name == "name" else f"{name} {_option(value)}"
        for name, value in given.items()
    )


def _option(value: Any) -> str:
    """A value, a grid or a range of the sweep file."""
    if isinstance(value, Mapping) and set(value) == {"grid"}:
        return " | ".join(map(str, value["grid"]))
    if isinstance(value, Mapping):
        return "(" + _settings(value) + ")"
    return str(value)


def _values(column: pd.Series) -> str:
    return ", ".join(str(value) for value in column.dropna().unique())
