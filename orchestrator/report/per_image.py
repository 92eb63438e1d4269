"""What networks that decide per image spend: on single images, and on each class, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orchestrator.notation import millions, percent
from orchestrator.report.findings import SweepResult
from orchestrator.report.tables import Table


@dataclass(frozen=True)
class ClassCosts:
    """One trial's mean multiplications of each true class."""

    title: str
    """The trial and its settings."""
    images: str
    """What the means are of: test or validation."""
    table: Table
    """A row for the whole network and one for each layer, a column for each class."""


def deciding_trials(folder: Path, points: pd.DataFrame) -> pd.DataFrame:
    """Those of the trials whose networks decide per image: they have left a file of images."""
    files = points["trial_id"].map(lambda trial_id: folder / "images" / f"{trial_id}.csv")
    return points[files.map(Path.exists).astype(bool)]


def spread_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How far validation images are apart in what they cost."""
    records = [
        {
            "cell": row["cell"] if len(result.cells) > 1 else "",
            "method": row["method"],
            "settings": result.settings(row),
            "seed": str(row["seed"]) if result.searched["seed"].nunique() > 1 else "",
            "mean": millions(row["multiplications"]),
            "of dense": percent(row["multiplications"] / row["dense_multiplications"]),
            "p5": millions(row["multiplications_p5"]),
            "median": millions(row["multiplications_p50"]),
            "p95": millions(row["multiplications_p95"]),
            "mean of test images": millions(row["test_multiplications"]),
            "trial": row["trial_id"],
        }
        for _, row in trials.sort_values(["cell", "method", "multiplications"]).iterrows()
    ]
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def class_costs(result: SweepResult, folder: Path, trials: pd.DataFrame) -> Iterator[ClassCosts]:
    """For each of the trials; of test images where it has met them."""
    tables = {
        images: _read(path)
        for images, name in (
            ("test", "test_multiplications_per_class.csv"),
            ("validation", "multiplications_per_class.csv"),
        )
        if (path := folder / name).exists()
    }
    for _, trial in trials.sort_values(["cell", "method", "multiplications"]).iterrows():
        for images, table in tables.items():
            rows = table[table["trial_id"] == trial["trial_id"]]
            if not rows.empty:
                title = ", ".join(filter(None, [trial["trial_id"], result.settings(trial)]))
                dense = trial["dense_multiplications"]
                yield ClassCosts(title, images, _class_table(rows, dense))
                break


def _read(path: Path) -> pd.DataFrame:
    """Class names as they are written, be they "1" or "None"."""
    texts = dict.fromkeys(("trial_id", "class", "layer"), str)
    missing = {"multiplications": [""]}  # of a row that was cut off
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)


def _class_table(rows: pd.DataFrame, dense: float) -> Table:
    """
    Args:
        rows: of one trial: class, layer, multiplications. A layer that a class lacks costs nothing.
    """
    classes = list(dict.fromkeys(rows["class"]))
    by_layer: dict[str, dict[str, float]] = {}
    for name, layer, multiplications in rows[["class", "layer", "multiplications"]].to_numpy():
        by_layer.setdefault(layer, {})[name] = multiplications
    whole = {name: math.fsum(each.get(name, 0.0) for each in by_layer.values()) for name in classes}
    records = [
        {"": "whole network", **{name: millions(whole[name]) for name in classes}},
        {"": "of dense", **{name: percent(whole[name] / dense) for name in classes}},
        *(
            {"": layer or "(itself)", **{name: millions(each.get(name, 0.0)) for name in classes}}
            for layer, each in by_layer.items()
        ),
    ]
    return Table.of(records, words=("",), best_rows=[0])
