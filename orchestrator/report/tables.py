"""The report's tables, as text that HTML and Markdown show alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from orchestrator.frontier import BUDGETS, best_within
from orchestrator.notation import MISSING, accuracy, duration, millions, milliseconds, percent
from orchestrator.report.findings import HALF, mean_and_deviation
from orchestrator.report.sweep_result import SweepResult, natural

NETWORKS = "networks/{}.safetensors"


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
                "Best at half the cost, validation",
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


def confirmed_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """The frontiers' points on test images with fresh seeds, beside what the search made of them.

    Args:
        points: of `confirmed`.
    """
    rows = result.trials.set_index("trial_id", drop=False)
    records = [
        {
            "cell": point["cell"] if len(result.cells) > 1 else "",
            "method": point["method"],
            "settings": result.settings(rows.loc[point["trial_id"]]),
            "test": mean_and_deviation(point),
            "n": str(point["n"]),
            "search's validation": accuracy(point["search_val_accuracy"]),
            "multiplications": millions(point["multiplications"]),
            "of dense": percent(point["share"]),
            "latency": milliseconds(point["latency_ms"]),
            "trial": point["trial_id"],
        }
        for _, point in points.iterrows()
    ]
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def depth_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Each setting before and after: the best trial of every method at half of the cost.

    Args:
        points: of `confirmed`; where a trial was confirmed, its accuracies there are shown.
    """
    confirmed = points.set_index("trial_id")
    records = []
    for cell in result.cells:
        rows = result.searched[result.searched["cell"] == cell]
        for method in result.methods:
            candidates = rows[rows["method"] == method]
            if not confirmed.empty:
                candidates = candidates[candidates["trial_id"].isin(confirmed.index)]
            best = best_within(candidates, HALF)
            if best is None:
                continue
            point = confirmed.loc[best["trial_id"]] if best["trial_id"] in confirmed.index else None
            records.append(
                {
                    "setting": cell,
                    "before": millions(best["dense_multiplications"]),
                    "accuracy before": accuracy(best["dense_val_accuracy"]),
                    "method": method,
                    "after": millions(best["multiplications"]),
                    "accuracy after": accuracy(best["val_accuracy"]),
                    "on test images": "" if point is None else mean_and_deviation(point),
                    "trial": best["trial_id"],
                }
            )
    return Table.of(records, words=("setting", "method", "trial"))


def channels_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How many channels each conv has in these trials' networks, of how many: 12 of 64.

    Left out are networks that hold all channels: those that zero weights or decide per image.
    """
    whole: dict[str, dict[str, int]] = {}
    for _, row in result.trials[result.trials["method"] == "dense"].iterrows():
        whole.setdefault(row["cell"], _channels(result.file(row, NETWORKS)))
    names = list(dict.fromkeys(name for each in whole.values() for name in each))
    records = []
    for _, row in trials.iterrows():
        dense, own = whole.get(row["cell"], {}), _channels(result.file(row, NETWORKS))
        if any(own[name] < n for name, n in dense.items() if name in own):
            of = {name: f"{own[name]} of {n}" for name, n in dense.items() if name in own}
            records.append(
                {
                    "cell": row["cell"] if len(result.cells) > 1 else "",
                    "method": row["method"],
                    "settings": result.settings(row),
                    **{name: of.get(name, "") for name in names},
                    "trial": row["trial_id"],
                }
            )
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def _channels(network: Path) -> dict[str, int]:
    """The output channels of every conv in a network's file; none where there is no file."""
    if not network.exists():
        return {}
    with safe_open(network, framework="np") as file:
        names = sorted(file.keys(), key=natural)
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    return {
        name.removesuffix(".weight"): shape[0]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 4
    }


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
            "95 % interval": _interval(row["hypervolume_low"], row["hypervolume_high"]),
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


def pairs_table(result: SweepResult, pairs: pd.DataFrame) -> Table:
    """At what share of equal costs the row's method is ahead of the column's.

    Args:
        pairs: of `compare_pairs`.
    """
    said = {
        (row["method"], row["other"]): f"{percent(row['ahead'])}"
        + (
            f" ({_percent_interval(row['ahead_low'], row['ahead_high'])})"
            if math.isfinite(row["ahead_low"])
            else ""
        )
        for _, row in pairs.iterrows()
    }
    methods = [name for name in result.methods if name in set(pairs["method"])]
    records = [
        {
            "ahead of →": one,
            **{other: MISSING if one == other else said.get((one, other), "") for other in methods},
        }
        for one in methods
    ]
    return Table.of(records, words=("ahead of →",))


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
                "Q-learning passes": _passes(rows["q_learning_epochs"]),
                "reward passes": _passes(rows["reward_epochs"]),
                "time": duration(rows["duration_s"].sum()),
                "a trial": duration(_number(rows["duration_s"].median())),
            }
        )
    return Table.of(records, words=("method",))


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
        unknown = [name for name in result.objectives if not math.isfinite(_number(row[name]))]
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


def _passes(column: pd.Series) -> str:
    """Epochs' worth of images, the median trial's; empty where there was none."""
    median = column.median()
    return f"{median:.1f}" if median > 0 else ""


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""


def _percent_interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"


def _count(number: int) -> str:
    """Empty for none."""
    return str(number) if number else ""


def _number(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)
