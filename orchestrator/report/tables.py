"""The report's tables, as text that HTML and Markdown show alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.frontier import BUDGETS, best_within
from orchestrator.notation import accuracy, duration, millions, milliseconds, percent
from orchestrator.report.findings import HALF, SweepResult


@dataclass(frozen=True)
class Table:
    """A header and rows of text."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: frozenset[int]
    """Places of the columns that hold words; the others hold figures and are set flush right."""
    best_rows: frozenset[int] = frozenset()
    """Places of the rows to stand out."""

    @staticmethod
    def of(
        records: Sequence[Mapping[str, str]], words: Sequence[str], best_rows: Sequence[int] = ()
    ) -> Table:
        """A row for each record, which all have the same columns; one empty in all is left out."""
        names = records[0] if records else {}
        header = tuple(name for name in names if any(record[name] for record in records))
        return Table(
            header=header,
            rows=[tuple(record[name] for name in header) for record in records],
            text_columns=frozenset(place for place, name in enumerate(header) if name in words),
            best_rows=frozenset(best_rows),
        )


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
    best = best_within(result.searched, HALF)
    if best is not None:
        figures.insert(
            0,
            Figure(
                "Best at half the multiplications",
                accuracy(best["val_accuracy"]),
                f"{best['method']}, {millions(best['multiplications'])}",
            ),
        )
    return figures


def frontier_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """The trials on a frontier, the cheapest first."""
    records = [
        {
            "cell": row["cell"] if len(result.cells) > 1 else "",
            "method": row["method"],
            "settings": result.settings(row),
            "seed": str(row["seed"]) if result.searched["seed"].nunique() > 1 else "",
            "validation": accuracy(row["val_accuracy"]),
            "test": accuracy(row["test_accuracy"]),
            "multiplications": millions(row["multiplications"]),
            "of dense": percent(row["multiplications"] / row["dense_multiplications"]),
            "parameters": millions(_number(row["parameters"])),
            "latency": milliseconds(row["latency_ms"]),
            "trial": row["trial_id"],
        }
        for _, row in points.sort_values(["multiplications", "val_accuracy"]).iterrows()
    ]
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def comparison_table(result: SweepResult, comparison: pd.DataFrame) -> Table:
    """Hypervolume, and the best accuracy at equal cost, for each cell and method.

    Args:
        comparison: of `compare_methods`. The rows with a cell's highest hypervolume stand out.
    """
    cells, methods = result.cells, result.methods
    ordered = comparison.sort_values(
        ["cell", "method"],
        key=lambda column: column.map((cells if column.name == "cell" else methods).index),
        ignore_index=True,
    )
    records = [
        {
            "cell": row["cell"] if len(cells) > 1 else "",
            "method": row["method"],
            "hypervolume": f"{row['hypervolume']:.3f}",
            **{
                f"at ≤ {percent(budget)}": accuracy(row[f"val_accuracy_at_{100 * budget:.0f}"])
                for budget in BUDGETS
            },
            "completed": f"{row['completed']} of {row['tries']}",
        }
        for _, row in ordered.iterrows()
    ]
    best = ordered.groupby("cell")["hypervolume"].idxmax().tolist() if records else []
    return Table.of(records, words=("cell", "method"), best_rows=best)


def effort_table(result: SweepResult) -> Table:
    """What each method was given and what it took."""
    records = []
    for method in result.methods:
        rows = result.searched[result.searched["method"] == method]
        if rows.empty:
            continue
        records.append(
            {
                "method": method,
                "tries": str(len(rows)),
                "completed": str((rows["status"] == "completed").sum()),
                "stopped early": _count((rows["status"] == "stopped_early").sum()),
                "fine-tuning epochs": _range(rows["fine_tuning_epochs"]),
                "epochs spent": _range(rows["epochs_spent"]),
                "time": duration(rows["duration_s"].sum()),
                "a trial": duration(_number(rows["duration_s"].median())),
            }
        )
    return Table.of(records, words=("method",))


def failures(result: SweepResult) -> list[Failure]:
    """Trials that failed or were lost, by the first line of their error, the commonest first."""
    rows = result.trials[~result.trials["status"].isin(["completed", "stopped_early"])]
    texts = rows["error"].fillna("").where(rows["error"].notna(), rows["status"])
    reasons = texts.str.split("\n").str[0]
    groups = [
        Failure(str(reason), list(rows.loc[same.index, "trial_id"]), texts[same.index[0]])
        for reason, same in reasons.groupby(reasons, sort=False)
    ]
    return sorted(groups, key=lambda group: -len(group.trial_ids))


def provenance(result: SweepResult) -> list[tuple[str, str]]:
    """How the sweep was made: (what, value)."""
    sweep, trials = result.sweep, result.trials
    search = sweep.get("search", {})
    facts = {
        "Data": _settings(sweep["data"]),
        "Validation images": _range(trials["validation_images"]),
        "Classes": _range(trials["classes"]),
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


def _range(column: pd.Series) -> str:
    """5, or 3 to 5; empty if nothing is known."""
    low, high = column.min(), column.max()
    if pd.isna(low):
        return ""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _count(number: int) -> str:
    """Empty for none."""
    return str(number) if number else ""


def _number(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)
