"""Charts of means over seeds: confirmed points, and options that several seeds ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.pareto import on_frontier_within
from orchestrator.formatting import accuracy, mean_and_deviation, millions, percent
from orchestrator.palette import CSS, Palette
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.charts.costs import COSTS, unit
from orchestrator.report.sweep_result import SweepResult


def confirmed_charts(
    result: SweepResult, points: pd.DataFrame, palette: Palette = CSS
) -> dict[str, vega.Spec]:
    """Test accuracy of each cell's confirmed points, mean and deviation, and the search's figures.

    A cell without any has no chart.

    Args:
        points: of `confirmed`.
    """
    values = [
        _mean(result, point, "test", "multiplications")
        | {
            "beside": point["search_val_accuracy"],
            "beside_said": f"{accuracy(point['search_val_accuracy'])}, the search's validation",
        }
        for _, point in points.iterrows()
    ]
    what = "Test accuracy of confirmed trials against multiplications."
    return _charts(result, values, "multiplications", "Accuracy", what, palette)


def repeated_charts(
    result: SweepResult, points: pd.DataFrame, cost: str, palette: Palette = CSS
) -> dict[str, vega.Spec]:
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
        _mean(result, point, "val", cost) | _tested(point) | {"unbeaten": bool(best)}
        for (_, point), best in zip(known.iterrows(), unbeaten, strict=True)
    ]
    what = f"Validation accuracy, means over seeds, against {COSTS[cost].lower()}."
    charts = _charts(result, values, cost, "Validation accuracy", what, palette)
    for each in charts.values():
        rule = each["layer"][0]["encoding"]
        steps = {"x": rule["x"], "y": {**rule["y"], "field": "mean"}, "color": rule["color"]}
        steps["opacity"] = vega.faded(0.6)
        front = vega.layer(
            "line", steps, keep="datum.unbeaten", interpolate="step-after", strokeWidth=1.5
        )
        each["layer"].insert(0, front)
    return charts


def means_below_axis(charts: Mapping[str, vega.Spec]) -> int:
    """How many means lie below the axes of these charts, of `repeated_charts`."""
    return sum(
        value["mean"] < each["layer"][0]["encoding"]["y"]["scale"]["domain"][0]
        for each in charts.values()
        for value in each["data"]["values"]
    )


def _mean(result: SweepResult, point: pd.Series, images: str, cost: str) -> dict[str, Any]:
    """A point as it is drawn: its mean over seeds, with a deviation to either side unless n is 1.

    Args:
        images: "val" or "test", of which its accuracies are.
    """
    trial = result.by_id.loc[point["trial_id"]]
    mean, deviation = point[f"{images}_accuracy"], point[f"{images}_deviation"]
    around = deviation if math.isfinite(deviation) else 0.0
    kind = {"val": "validation", "test": "test"}[images]
    return {
        "cell": point["cell"],
        "method": point["method"],
        "work": f"{millions(point['multiplications'])} ({percent(point['share'])} of dense)",
        "trial": point["trial_id"],
        "settings": result.settings(trial),
        "command": result.command(trial),
        **{"mean": mean, "low": mean - around, "high": mean + around},
        "cost": point[cost] / unit(cost),
        "said": f"{mean_and_deviation(mean, deviation)}, n = {point['n']}, {kind} images",
    }


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
) -> dict[str, vega.Spec]:
    """A chart for each cell that has values, all with one axis of accuracies.

    Means are filled, with a deviation to either side, and hollow is what stands beside them.

    Args:
        accuracies: the title of that axis.
    """
    colour, shape = vega.method_scales(result, palette)
    told = vega.tooltip(
        trial="its first trial",
        method="method",
        settings="settings",
        said="filled",
        beside_said="hollow",
        work="multiplications",
        command="run that again",
    )
    charts = {}
    for cell in result.cells:
        own = [value for value in values if value["cell"] == cell]
        if not own:
            continue
        dearest = max(value["cost"] for value in own)
        x = vega.axis("cost", COSTS[cost], scale={"domain": [0, 1.03 * dearest]})
        y = vega.axis("mean", accuracies, scale=_accuracy_scale(values))
        ends: vega.Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        ends |= {"color": colour, "opacity": vega.faded(1)}
        marks: vega.Spec = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": told}
        hollow = {**marks, "y": {**y, "field": "beside"}, "opacity": vega.faded(0.45)}
        layers = [
            vega.layer("rule", ends, strokeWidth=2, clip=True),
            vega.layer(
                "point", hollow, keep="isValid(datum.beside)", size=45, filled=False, strokeWidth=1,
                clip=True,
            ),
            vega.layer(
                "point", marks | {"opacity": vega.faded(1)}, size=90, filled=True, strokeWidth=1,
                stroke=palette.surface, clip=True,
            ),
        ]  # fmt: skip
        charts[cell] = vega.chart(own, layers, description, palette)
    return charts


def _accuracy_scale(values: Sequence[Mapping[str, Any]]) -> vega.Spec:
    """What no other mean of its method and cell beats, and all means above the least of these.

    Another option that pruning ruined would squeeze all that matters into a strip.
    """
    least = min(value["low"] for value in values if value.get("unbeaten", True))
    shown = [value for value in values if value["mean"] >= least]
    return vega.accuracies_shown(
        [v[end] for v in shown for end in ("low", "high", "beside") if end in v]
    )
