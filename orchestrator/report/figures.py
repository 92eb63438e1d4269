"""The report's further figures, as Vega-Lite specifications that hold their own data.

Confirmed points with their deviations; what all, half and one of the seeds reach; accuracy and
sparsity before and after retraining, and over rounds; learning curves; what single images cost.
Written out rather than built with altair, which takes a tenth of a second for each chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.comparison import attainment
from orchestrator.notation import accuracy, millions, percent
from orchestrator.report.charts import CSS, LIGHT, Palette, config, method_marks
from orchestrator.report.sweep_result import SweepResult
from orchestrator.trial_files import read_reports

Spec = dict[str, Any]
BINS = 30


def confirmed_spec(
    result: SweepResult, points: pd.DataFrame, cell: str, palette: Palette = CSS
) -> Spec | None:
    """Test accuracy of a cell's confirmed points, mean and deviation, over the search's figures."""
    own = points[points["cell"] == cell]
    if own.empty:
        return None
    rows = result.trials.set_index("trial_id", drop=False)
    values = [
        {
            "method": point["method"],
            "cost": point["multiplications"] / 1e6,
            "test": point["test_accuracy"],
            "low": point["test_accuracy"] - _or(point["test_deviation"], 0.0),
            "high": point["test_accuracy"] + _or(point["test_deviation"], 0.0),
            "search": point["search_val_accuracy"],
            "said": f"{accuracy(point['test_accuracy'])} ± {accuracy(point['test_deviation'])}, "
            f"n = {point['n']}",
            "work": f"{millions(point['multiplications'])} ({percent(point['share'])} of dense)",
            "trial": point["trial_id"],
            "settings": result.settings(rows.loc[point["trial_id"]]),
            "command": result.command(rows.loc[point["trial_id"]]),
        }
        for _, point in own.iterrows()
    ]
    shown = [value[name] for value in values for name in ("low", "high", "search")]
    margin = 0.06 * (max(shown) - min(shown)) or 0.02
    scale = {"domain": [min(shown) - margin, max(shown) + margin]}
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": "Multiplications per image (millions)",
        "scale": {"domain": [0, 1.03 * max(value["cost"] for value in values)]},
    }
    y = {"field": "test", "type": "quantitative", "title": "Accuracy", "scale": scale}
    colour, shape = _method_scales(result, palette)
    names = {"trial": "trial", "method": "method", "settings": "settings", "said": "test accuracy"}
    names |= {"search": "search's validation", "work": "multiplications", "command": "run it again"}
    return _spec(
        values,
        [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
                | {"color": colour, "opacity": _faded(1)},
            },
            {
                "mark": {"type": "point", "size": 45, "filled": False, "strokeWidth": 1},
                "encoding": {"x": x, "y": {**y, "field": "search"}, "color": colour}
                | {"shape": shape, "opacity": _faded(0.45), "tooltip": _tooltip(names)},
            },
            {
                "mark": {"type": "point", "size": 90, "filled": True, "strokeWidth": 1}
                | {"stroke": palette.surface},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape}
                | {"opacity": _faded(1), "tooltip": _tooltip(names)},
            },
        ],
        "Test accuracy of confirmed trials against multiplications.",
        palette,
    )


def confirmed_picture_spec(result: SweepResult, points: pd.DataFrame) -> Spec:
    """The confirmed points of all cells as a picture, a panel for each."""
    drawn = [(cell, confirmed_spec(result, points, cell, LIGHT)) for cell in result.cells]
    columns = 1 if len(drawn) == 1 else 2
    width, height = (760, 400) if columns == 1 else (380, 240)
    legend = {"title": None, "orient": "top", "columns": 6}
    panels = []
    for cell, spec in drawn:
        if spec is not None:
            for layer in spec["layer"]:
                for channel in {"color", "shape"} & layer["encoding"].keys():
                    layer["encoding"][channel]["legend"] = legend
            own = {name: spec[name] for name in ("data", "layer")}
            title = {} if columns == 1 else {"title": cell}
            panels.append({**own, **title, "width": width, "height": height})
    return {
        "title": {
            "text": f"{result.sweep['name']}: test accuracy against multiplications",
            "subtitle": "Filled: mean and deviation of fresh seeds. Hollow: the validation "
            "accuracy that the search saw.",
        },
        "params": [{"name": "chosen", "value": ""}],
        "concat": panels,
        "columns": columns,
        "config": config(LIGHT),
        "background": LIGHT.surface,
        "padding": 16,
    }


def attainment_spec(result: SweepResult, surfaces: pd.DataFrame, cell: str) -> Spec | None:
    """The accuracy at each cost that all, half and one of the seeds reach."""
    own = surfaces[surfaces["cell"] == cell]
    if own.empty:
        return None
    values: list[dict[str, Any]] = []
    for (method, count, n), corners in own.groupby(["method", "reached_by", "seeds"], sort=False):
        by = "every seed" if count == n else "one seed" if count == 1 else "half of the seeds"
        steps = [(row["share"], row["val_accuracy"]) for _, row in corners.iterrows()]
        steps.append((max(1.0, steps[-1][0]), steps[-1][1]))
        values += [
            {"method": method, "by": by, "share": share, "accuracy": each} for share, each in steps
        ]
    colour, _ = _method_scales(result, CSS)
    dashes = {"domain": ["every seed", "half of the seeds", "one seed"]}
    return _spec(
        values,
        [
            {
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8},
                "encoding": {
                    "x": _axis("share", "Share of the dense network's multiplications", "%"),
                    "y": _axis("accuracy", "Validation accuracy"),
                    "color": colour,
                    "opacity": _faded(0.9),
                    "strokeDash": {
                        "field": "by",
                        "type": "nominal",
                        "scale": {**dashes, "range": [[1, 0], [5, 3], [1, 3]]},
                        "legend": {"title": "reached by", "orient": "top", "symbolType": "stroke"}
                        | {"symbolStrokeColor": CSS.ink, "symbolStrokeWidth": 2, "symbolSize": 400}
                        | {"titleFontWeight": "normal", "titleColor": CSS.muted},
                    },
                },
            }
        ],
        "Accuracies that all, half and one of the seeds reach at each cost.",
    )


def sparsity_spec(result: SweepResult) -> Spec | None:
    """Accuracy against the share of weights that are gone, before and after retraining."""
    rows = result.searched[result.searched["status"] == "completed"]
    left = rows["parameters"].astype(float) * (1 - rows["sparsity"].fillna(0))
    rows = rows.assign(gone=1 - left / rows["dense_parameters"].astype(float))
    rows = rows.dropna(subset=["gone", "val_accuracy", "val_accuracy_before_finetuning"])
    rows = rows[rows["gone"] > 0]
    if rows.empty:
        return None
    values = [
        {
            "trial": row["trial_id"],
            "method": row["method"],
            "gone": row["gone"],
            "accuracy": row[column],
            "when": when,
        }
        for _, row in rows.iterrows()
        for when, column in (
            ("before retraining", "val_accuracy_before_finetuning"),
            ("after", "val_accuracy"),
        )
    ]
    colour, _ = _method_scales(result, CSS)
    hollow = {"test": "datum.when === 'before retraining'", "value": "transparent"}
    return _spec(
        values,
        [
            {
                "mark": {"type": "point", "size": 45, "strokeWidth": 1.5},
                "encoding": {
                    "x": _axis("gone", "Share of the dense network's weights that are gone", "%"),
                    "y": _axis("accuracy", "Validation accuracy"),
                    "stroke": colour,
                    "fill": {**colour, "condition": hollow},
                    "opacity": _faded(0.8),
                    "tooltip": _tooltip(
                        {name: name for name in ("trial", "method", "when", "gone", "accuracy")}
                    ),
                },
            }
        ],
        "Accuracy against the share of weights that are gone, before and after retraining.",
    )


def rounds_spec(result: SweepResult, trials: pd.DataFrame) -> Spec | None:
    """Sparsity over the rounds of prune and retrain: pruned, then retrained."""
    values = []
    for _, trial in trials.iterrows():
        reports = read_reports(result.file(trial, "reports/{}.jsonl"))
        for report in (each for each in reports if "sparsity_before_finetuning" in each):
            named = {"trial": trial["trial_id"], "method": trial["method"]}
            step = report["round"]
            values.append({**named, "step": step - 0.5, "sparsity": report[_BEFORE]})
            values.append({**named, "step": step, "sparsity": report["sparsity"]})
    if not values:
        return None
    colour, _ = _method_scales(result, CSS)
    return _spec(
        values,
        [
            {
                "mark": {"type": "line", "point": True, "strokeWidth": 1.5},
                "encoding": {
                    "x": _axis("step", "Round: pruned at the half, retrained at the whole"),
                    "y": _axis("sparsity", "Share of weights that are zero", "%"),
                    "color": colour,
                    "detail": {"field": "trial"},
                    "opacity": _faded(0.7),
                    "tooltip": _tooltip({name: name for name in ("trial", "step", "sparsity")}),
                },
            }
        ],
        "Sparsity over rounds of pruning and retraining.",
    )


_BEFORE = "sparsity_before_finetuning"


def curves_spec(result: SweepResult, trials: pd.DataFrame) -> Spec | None:
    """Validation accuracy while trials were trained; 0 is where pruning began."""
    values: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    for _, trial in trials.iterrows():
        reports = read_reports(result.file(trial, "reports/{}.jsonl"))
        epochs = [each for each in reports if "epoch" in each]
        before = [each for each in epochs if "dense_val_accuracy" in each]
        own = [each for each in epochs if "val_accuracy" in each]
        budget = trial["fine_tuning_epochs"]
        scratch = max(len(own) - (0 if pd.isna(budget) else int(budget)), 0)
        named = {"trial": trial["trial_id"], "method": trial["method"]}
        values += [
            {**named, "epoch": place + 1 - scratch, "accuracy": each["val_accuracy"]}
            for place, each in enumerate(own)
        ]
        if not dense:
            dense = [
                {"trial": "dense network", "method": "before", "epoch": place + 1 - len(before)}
                | {"accuracy": each["dense_val_accuracy"]}
                for place, each in enumerate(before)
            ]
    if not values:
        return None
    colour, _ = _method_scales(result, CSS)
    encoding = {
        "x": _axis("epoch", "Epochs since pruning began"),
        "y": _axis("accuracy", "Validation accuracy"),
        "detail": {"field": "trial"},
        "tooltip": _tooltip({name: name for name in ("trial", "epoch", "accuracy")}),
    }
    return _spec(
        values + dense,
        [
            {
                "transform": [{"filter": "datum.method === 'before'"}],
                "mark": {"type": "line", "strokeDash": [4, 3], "color": CSS.muted},
                "encoding": encoding,
            },
            {
                "transform": [{"filter": "datum.method !== 'before'"}],
                "mark": {"type": "line", "point": {"size": 20}, "strokeWidth": 1.8},
                "encoding": {**encoding, "color": colour, "opacity": _faded(0.9)},
            },
        ],
        "Validation accuracy over epochs.",
    )


def spread_spec(images: pd.DataFrame, dense: float) -> Spec:
    """How many images cost how much.

    Args:
        images: class, correct and multiplications of each, as in images/TRIAL_ID.csv.
        dense: the dense network's multiplications.
    """
    shares = images["multiplications"].to_numpy(dtype=float) / dense
    edges = np.linspace(0, max(1.0, float(shares.max())), BINS + 1)
    values = [
        {"from": float(low), "to": float(high), "class": str(name), "images": int(count)}
        for name, rows in images.groupby("class", sort=False)
        for low, high, count in zip(
            edges[:-1],
            edges[1:],
            np.histogram(rows["multiplications"].to_numpy(dtype=float) / dense, edges)[0],
            strict=True,
        )
        if count
    ]
    names = list(dict.fromkeys(value["class"] for value in values))
    many = len(names) > len(CSS.methods)
    colour: dict[str, Any] = {"value": CSS.methods[0]}
    if not many:
        scale = {"domain": names, "range": list(CSS.methods[: len(names)])}
        colour = {"field": "class", "type": "nominal", "scale": scale}
        colour["legend"] = {"title": "true class", "orient": "top", "columns": 6}
    return _spec(
        values,
        [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "x": {**_axis("from", "Share of the dense network's multiplications", "%")}
                    | {"bin": {"binned": True}},
                    "x2": {"field": "to"},
                    "y": {**_axis("images", "Images"), "stack": "zero"},
                    "color": colour,
                    "tooltip": _tooltip({"class": "class", "images": "images", "from": "from"}),
                },
            }
        ],
        "How many images cost which share of the dense network's multiplications.",
    )


def surfaces(result: SweepResult) -> pd.DataFrame:
    """The attainment surfaces of all cells and methods (see `attainment`)."""
    return attainment(result.trials)


def _spec(
    values: Sequence[Mapping[str, Any]],
    layers: Sequence[Spec],
    description: str,
    palette: Palette = CSS,
) -> Spec:
    """A whole specification: as wide as there is room, the data rounded to what can be seen."""
    rounded = [
        {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in value.items()}
        for value in values
    ]
    return {
        "data": {"values": rounded},
        "params": [{"name": "chosen", "value": ""}],
        "layer": list(layers),
        "width": "container",
        "height": 300,
        "description": f"{description} The tables hold the same figures.",
        "background": None if palette is CSS else LIGHT.surface,
        "config": config(palette),
    }


def _method_scales(result: SweepResult, palette: Palette) -> tuple[Spec, Spec]:
    marks = method_marks(result.methods, palette)
    found = []
    for place in (0, 1):
        scale = {"domain": list(marks), "range": [mark[place] for mark in marks.values()]}
        found.append({"field": "method", "type": "nominal", "scale": scale, "legend": None})
    return found[0], found[1]


def _axis(field: str, title: str, form: str = "") -> Spec:
    axis: Spec = {"field": field, "type": "quantitative", "title": title}
    return axis | {"scale": {"zero": False}} | ({"axis": {"format": form}} if form else {})


def _tooltip(fields: Mapping[str, str]) -> list[Spec]:
    return [
        {"field": field, "title": title}
        | ({"type": "quantitative", "format": ".4~g"} if field in _FIGURES else {"type": "nominal"})
        for field, title in fields.items()
    ]


_FIGURES = {"gone", "accuracy", "sparsity", "epoch", "step", "search", "from", "images"}


def _faded(opacity: float) -> Spec:
    """This opacity, unless the reader has chosen another method."""
    shown = "chosen === '' || datum.method === chosen"
    return {"condition": {"test": shown, "value": opacity}, "value": 0.12 * opacity}


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
