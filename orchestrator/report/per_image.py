"""What networks that decide per image spend: on single images, and on each class, as tables."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from orchestrator.formatting import millions, percent
from orchestrator.report.figures import spread_spec
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.table import Table
from orchestrator.run_folder.trial_files import extremes, read_extremes

IMAGES = "images/{}.csv"
PER_CLASS = "multiplications_per_class.csv"
MOST_SPREADS = 4  # trials whose single images are shown


@dataclass(frozen=True)
class ClassCosts:
    """One trial's mean multiplications of each true class."""

    title: str
    """The trial and its settings."""
    images: str
    """What the means are of: test or validation."""
    table: Table
    """A row for the whole network and one for each layer, a column for each class."""


@dataclass(frozen=True)
class Picture:
    """One image, in the page itself."""

    address: str
    """A `data:` address."""
    said: str
    """Its true class, what it cost, and whether it was classified right."""


@dataclass(frozen=True)
class Spread:
    """What one trial spent on single images."""

    title: str
    chart: dict[str, Any]
    """How many cost how much."""
    cheapest: list[Picture]
    dearest: list[Picture]


def deciding_trials(result: SweepResult, points: pd.DataFrame) -> pd.DataFrame:
    """Those of the trials whose networks decide per image: they have left a file of images."""
    there = [result.file(row, IMAGES).exists() for _, row in points.iterrows()]
    return points[pd.Series(there, index=points.index, dtype=bool)]


def spreads(result: SweepResult, trials: pd.DataFrame) -> Iterator[Spread]:
    """For each of the trials, at most `MOST_SPREADS`: the most accurate ones."""
    for _, trial in trials.nlargest(MOST_SPREADS, "val_accuracy").iterrows():
        images = _images(result.file(trial, IMAGES))
        picture = result.file(trial, "images/{}.png")
        costs = images["multiplications"].tolist()
        shown: tuple[list[Picture], list[Picture]] = ([], [])
        if picture.exists():
            rows = zip(extremes(costs), read_extremes(picture, len(costs)), strict=True)
            for found, (places, drawn) in zip(shown, rows, strict=True):
                found += [
                    Picture(_address(each), _said(images.iloc[place]))
                    for place, each in zip(places, drawn, strict=True)
                ]
        title = ", ".join(filter(None, [trial["trial_id"], result.settings(trial)]))
        yield Spread(title, spread_spec(images, trial["dense_multiplications"]), *shown)


def _address(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _said(image: pd.Series) -> str:
    right = "" if image["correct"] in (True, "true") else ", wrong"
    return f"{image['class']}, {millions(image['multiplications'])}{right}"


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


def class_costs(result: SweepResult, trials: pd.DataFrame) -> Iterator[ClassCosts]:
    """For each of the trials; of test images where it has met them."""
    for _, trial in trials.sort_values(["cell", "method", "multiplications"]).iterrows():
        for images, name in (
            ("test", "test_multiplications_per_class.csv"),
            ("validation", PER_CLASS),
        ):
            rows = result.class_costs(trial, name)
            if not rows.empty:
                title = ", ".join(filter(None, [trial["trial_id"], result.settings(trial)]))
                dense = trial["dense_multiplications"]
                yield ClassCosts(title, images, _class_table(rows, dense))
                break


def _images(path: Path) -> pd.DataFrame:
    """Class, correct and multiplications of single images."""
    return pd.read_csv(path, dtype={"class": str}, keep_default_na=False)


def mean_layers(result: SweepResult, trial: pd.Series) -> dict[str, float]:
    """What a trial's network spent on each layer for the mean validation image; empty if unknown.

    Of a network that decides per image; another's layers cost every image the same.
    """
    rows = result.class_costs(trial, PER_CLASS)
    images = result.file(trial, IMAGES)
    if not images.exists():
        return _by_layer(rows["multiplications"].groupby(rows["layer"], sort=False).max())
    classes = _images(images)["class"].value_counts()
    spent = rows["multiplications"] * rows["class"].map(classes).fillna(0)
    return _by_layer(spent.groupby(rows["layer"], sort=False).sum() / classes.sum())


def _by_layer(costs: pd.Series) -> dict[str, float]:
    return {str(layer): float(cost) for layer, cost in costs.items()}


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
