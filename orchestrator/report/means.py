"""Charts of means over seeds: confirmed points, and options that several seeds ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.pareto import on_frontier_within
from orchestrator.analysis.uncertainty import mean_and_deviation
from orchestrator.formatting import accuracy, millions, percent
from orchestrator.palette import CSS, LIGHT, Palette
from orchestrator.report.charts import (
    COSTS,
    IN_MILLIONS,
    config,
    panels_laid_out,
)
from orchestrator.report.specification import Spec, faded, method_scales, spec_of, tooltip
from orchestrator.report.sweep_result import SweepResult

DESCRIBED = {
    "trial": "its first trial",
    "method": "method",
    "settings": "settings",
    "said": "filled",
    "beside_said": "hollow",
    "work": "multiplications",
    "command": "run that again",
}


def confirmed_charts(
    result: SweepResult, points: pd.DataFrame, palette: Palette = CSS
) -> dict[str, Spec]:
    """Test accuracy of each cell's confirmed points, mean and deviation, and the search's figures.

    A cell without any has no chart.

    Args:
        points: of `confirmed`.
    """
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
        for _, point in points.iterrows()
    ]
    what = "Test accuracy of confirmed trials against multiplications."
    return _charts(result, values, "multiplications", "Accuracy", what, palette)


def repeated_charts(
    result: SweepResult, points: pd.DataFrame, cost: str, palette: Palette = CSS
) -> dict[str, Spec]:
    """Validation accuracy of each cell's options, mean and deviation over seeds; test accuracy.

    A step joins the means of a method that none of its other means beats. A cell that no options
    repeat in has no chart.

    Args:
        points: of `repeated`.
        cost: a column of theirs.
    """
    known = points[points[cost].notna()]
    pair = {"val_accuracy": "maximize", cost: "minimize"}
    unbeaten = on_frontier_within(known, ["cell", "method"], pair)
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
        for (_, point), best in zip(known.iterrows(), unbeaten, strict=True)
    ]
    what = f"Validation accuracy, means over seeds, against {COSTS[cost].lower()}."
    charts = _charts(result, values, cost, "Validation accuracy", what, palette)
    for chart in charts.values():
        rule = chart["layer"][0]["encoding"]
        steps = {"x": rule["x"], "y": {**rule["y"], "field": "mean"}, "color": rule["color"]}
        line = {
            "transform": [{"filter": "datum.unbeaten"}],
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5},
            "encoding": {**steps, "opacity": faded(0.6)},
        }
        chart["layer"].insert(0, line)
    return charts


def below_charts(charts: Mapping[str, Spec]) -> int:
    """How many means lie below the axes of these charts, of `repeated_charts`."""
    return sum(
        value["mean"] < chart["layer"][0]["encoding"]["y"]["scale"]["domain"][0]
        for chart in charts.values()
        for value in chart["data"]["values"]
    )


def means_picture_spec(
    result: SweepResult, charts: Mapping[str, Spec], title: str, subtitle: str
) -> Spec:
    """The charts of all cells as a picture, a panel for each.

    Args:
        charts: of each cell, by `confirmed_charts` or `repeated_charts` in plain colours.
    """
    columns, (width, height) = panels_laid_out(len(charts))
    legend = {"title": None, "orient": "top", "columns": 6 if columns == 1 else 10}
    drawn = []
    for cell, chart in charts.items():
        for layer in chart["layer"]:
            for channel in {"color", "shape"} & layer["encoding"].keys():
                layer["encoding"][channel]["legend"] = legend
        own = {name: chart[name] for name in ("data", "layer")}
        named = {"title": cell} if len(result.cells) > 1 else {}
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
        "cell": point["cell"],
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


def _charts(
    result: SweepResult,
    values: Sequence[Mapping[str, Any]],
    cost: str,
    accuracies: str,
    description: str,
    palette: Palette,
) -> dict[str, Spec]:
    """A chart for each cell that has values, all with one axis of accuracies.

    Args:
        accuracies: the title of that axis.
    """
    by_cell = {cell: [v for v in values if v["cell"] == cell] for cell in result.cells}
    y = {
        "field": "mean",
        "type": "quantitative",
        "title": accuracies,
        "scale": {"domain": _accuracies_shown(values) if values else [], "nice": False},
    }
    return {
        cell: _chart(result, own, y, COSTS[cost], description, palette)
        for cell, own in by_cell.items()
        if own
    }


def _chart(
    result: SweepResult,
    values: Sequence[Mapping[str, Any]],
    y: Spec,
    costs: str,
    description: str,
    palette: Palette,
) -> Spec:
    """Means filled, with a deviation to either side, and hollow what stands beside them."""
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": costs,
        "scale": {"domain": [0, 1.03 * max(value["cost"] for value in values)]},
    }
    colour, shape = method_scales(result, palette)
    told = tooltip(DESCRIBED)
    return spec_of(
        values,
        [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "clip": True},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
                | {"color": colour, "opacity": faded(1)},
            },
            {
                "transform": [{"filter": "isValid(datum.beside)"}],
                "mark": {"type": "point", "size": 45, "filled": False, "strokeWidth": 1}
                | {"clip": True},
                "encoding": {"x": x, "y": {**y, "field": "beside"}, "color": colour}
                | {"shape": shape, "opacity": faded(0.45), "tooltip": told},
            },
            {
                "mark": {"type": "point", "size": 90, "filled": True, "strokeWidth": 1}
                | {"stroke": palette.surface, "clip": True},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape}
                | {"opacity": faded(1), "tooltip": told},
            },
        ],
        description,
        palette,
    )


def _accuracies_shown(values: Sequence[Mapping[str, Any]]) -> list[float]:
    """What no other mean of its method and cell beats, and all means above the least of these.

    Another option that pruning ruined would squeeze all that matters into a strip.
    """
    least = min(value["low"] for value in values if value.get("unbeaten", True))
    shown = [value for value in values if value["mean"] >= least]
    ends = [value[end] for value in shown for end in ("low", "high", "beside") if end in value]
    margin = 0.06 * (max(ends) - min(ends)) or 0.02
    return [min(ends) - margin, max(ends) + margin]
