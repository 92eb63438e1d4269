"""Charts of means over seeds: confirmed points, and options that several seeds ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.frontier import on_frontier_within
from orchestrator.notation import accuracy, millions, percent
from orchestrator.report.charts import (
    COSTS,
    CSS,
    IN_MILLIONS,
    LIGHT,
    Palette,
    config,
    panels_laid_out,
)
from orchestrator.report.specification import Spec, faded, method_scales, spec_of, tooltip
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.uncertainty import mean_and_deviation

DESCRIBED = {
    "trial": "its first trial",
    "method": "method",
    "settings": "settings",
    "said": "filled",
    "beside_said": "hollow",
    "work": "multiplications",
    "command": "run that again",
}


def confirmed_spec(
    result: SweepResult, points: pd.DataFrame, cell: str, palette: Palette = CSS
) -> Spec | None:
    """Test accuracy of a cell's confirmed points, mean and deviation, over the search's figures.

    Args:
        points: of `confirmed`.
    """
    own = points[points["cell"] == cell]
    values = [
        _described(result, point)
        | _interval(point["test_accuracy"], point["test_deviation"])
        | {
            "cost": point["multiplications"] / 1e6,
            "said": f"{mean_and_deviation(point['test_accuracy'], point['test_deviation'])}, "
            f"n = {point['n']}, test images",
            "beside": point["search_val_accuracy"],
            "beside_said": f"{accuracy(point['search_val_accuracy'])}, the search's validation",
        }
        for _, point in own.iterrows()
    ]
    what = "Test accuracy of confirmed trials against multiplications."
    return _means_spec(result, values, "multiplications", "Accuracy", what, palette)


def repeated_spec(
    result: SweepResult, points: pd.DataFrame, cell: str, cost: str, palette: Palette = CSS
) -> Spec | None:
    """Validation accuracy of a cell's options, mean and deviation over seeds, and test accuracy.

    A step joins the means of a method that none of its other means beats.

    Args:
        points: of `repeated`.
        cost: a column of theirs.
    """
    own = points[(points["cell"] == cell) & points[cost].notna()]
    unbeaten = on_frontier_within(own, ["method"], {"val_accuracy": "maximize", cost: "minimize"})
    values = [
        _described(result, point)
        | _interval(point["val_accuracy"], point["val_deviation"])
        | {
            "cost": point[cost] / (1e6 if cost in IN_MILLIONS else 1),
            "unbeaten": bool(best),
            "said": f"{mean_and_deviation(point['val_accuracy'], point['val_deviation'])}, "
            f"n = {point['n']}, validation images",
        }
        | _tested(point)
        for (_, point), best in zip(own.iterrows(), unbeaten, strict=True)
    ]
    what = f"Validation accuracy, means over seeds, against {COSTS[cost].lower()}."
    chart = _means_spec(result, values, cost, "Validation accuracy", what, palette)
    if chart is not None:
        rule = chart["layer"][0]["encoding"]
        steps = {"x": rule["x"], "y": {**rule["y"], "field": "mean"}, "color": rule["color"]}
        line = {
            "transform": [{"filter": "datum.unbeaten"}],
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5},
            "encoding": {**steps, "opacity": faded(0.6)},
        }
        chart["layer"].insert(0, line)
    return chart


def means_picture_spec(
    result: SweepResult, panels: Mapping[str, Spec | None], title: str, subtitle: str
) -> Spec:
    """The charts of all cells as a picture, a panel for each, with one scale of accuracies.

    Args:
        panels: cell -> its chart, of `confirmed_spec` or `repeated_spec` in plain colours.
    """
    columns, (width, height) = panels_laid_out(len(panels))
    legend = {"title": None, "orient": "top", "columns": 6 if columns == 1 else 10}
    charts = {cell: chart for cell, chart in panels.items() if chart is not None}
    scales = [chart["layer"][0]["encoding"]["y"]["scale"]["domain"] for chart in charts.values()]
    lows, highs = zip(*scales, strict=True)
    drawn = []
    for cell, chart in charts.items():
        for layer in chart["layer"]:
            layer["encoding"]["y"]["scale"]["domain"] = [min(lows), max(highs)]
            for channel in {"color", "shape"} & layer["encoding"].keys():
                layer["encoding"][channel]["legend"] = legend
        own = {name: chart[name] for name in ("data", "layer")}
        named = {} if columns == 1 else {"title": cell}
        drawn.append({**own, **named, "width": width, "height": height})
    return {
        "title": {"text": f"{result.sweep['name']}: {title}", "subtitle": subtitle},
        "params": [{"name": "chosen", "value": ""}],
        "concat": drawn,
        "columns": columns,
        "config": config(LIGHT),
        "background": LIGHT.surface,
        "padding": 16,
    }


def _described(result: SweepResult, point: pd.Series) -> dict[str, Any]:
    trial = result.by_id.loc[point["trial_id"]]
    return {
        "method": point["method"],
        "work": f"{millions(point['multiplications'])} ({percent(point['share'])} of dense)",
        "trial": point["trial_id"],
        "settings": result.settings(trial),
        "command": result.command(trial),
    }


def _interval(mean: float, deviation: float) -> dict[str, float]:
    """A deviation to either side; none of one seed."""
    around = deviation if math.isfinite(deviation) else 0.0
    return {"mean": mean, "low": mean - around, "high": mean + around}


def _tested(point: pd.Series) -> dict[str, Any]:
    """What the same networks came to on test images, if all of them met these."""
    if point["tested"] < point["n"]:
        return {"beside_said": "not all on test images"}
    said = mean_and_deviation(point["test_accuracy"], point["test_deviation"])
    return {"beside": point["test_accuracy"], "beside_said": f"{said}, test images"}


def _means_spec(
    result: SweepResult,
    values: Sequence[Mapping[str, Any]],
    cost: str,
    accuracies: str,
    description: str,
    palette: Palette,
) -> Spec | None:
    """Means filled, with a deviation to either side, and hollow what stands beside them."""
    if not values:
        return None
    shown = [value[name] for value in values for name in ("low", "high", "beside") if name in value]
    margin = 0.06 * (max(shown) - min(shown)) or 0.02
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": COSTS[cost],
        "scale": {"domain": [0, 1.03 * max(value["cost"] for value in values)]},
    }
    y = {
        "field": "mean",
        "type": "quantitative",
        "title": accuracies,
        "scale": {"domain": [min(shown) - margin, max(shown) + margin], "nice": False},
    }
    colour, shape = method_scales(result, palette)
    told = tooltip(DESCRIBED)
    return spec_of(
        values,
        [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
                | {"color": colour, "opacity": faded(1)},
            },
            {
                "transform": [{"filter": "isValid(datum.beside)"}],
                "mark": {"type": "point", "size": 45, "filled": False, "strokeWidth": 1},
                "encoding": {"x": x, "y": {**y, "field": "beside"}, "color": colour}
                | {"shape": shape, "opacity": faded(0.45), "tooltip": told},
            },
            {
                "mark": {"type": "point", "size": 90, "filled": True, "strokeWidth": 1}
                | {"stroke": palette.surface},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape}
                | {"opacity": faded(1), "tooltip": told},
            },
        ],
        description,
        palette,
    )
