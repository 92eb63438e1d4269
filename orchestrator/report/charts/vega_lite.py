"""Vega-Lite specifications: what all charts of the report share.

They are written out as dictionaries: a library that builds them takes a tenth of a second for each.
Colours are CSS variables, so that one chart serves light, dark and print.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import LATENCY_RATIOS
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.palette import CSS, LIGHT, Palette, method_marks

Spec = dict[str, Any]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
FIGURES = {  # fields of tooltips that are numbers, and how they are written
    **dict.fromkeys(("gone", "accuracy", "sparsity", "epoch", "step", "from", "images"), ".4~g"),
    "val_accuracy": ".3f",
}
COSTS = {  # on x axes
    "multiplications": "Multiplications per image (millions)",
    "nonzero_multiplications": "Non-zero multiplications per image (millions)",
    "parameters": "Parameters (millions)",
    "latency_ratio": "Latency of one image over the dense network's",
    "latency_ratio_batch128": "Latency of 128 images over the dense network's",
    "bit_operations": "Bit operations per image (millions)",
    "mean_bits": "Mean bits of weights and inputs",
    "footprint_bytes": "Footprint in bytes (millions)",
    "winograd_multiplications": "Winograd multiplications per image (millions)",
}
CHOSEN: Spec = {"name": "chosen", "value": ""}  # the method pointed out on a page; others fade
CONFIG: Spec = {  # quiet axes, so that the marks speak
    "font": FONT,
    "axis": {
        "labelColor": CSS.muted,
        "titleColor": CSS.ink,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": CSS.grid,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "tickCount": {"expr": "6"},
    },
    "axisX": {"grid": False, "domain": True, "domainColor": CSS.grid},
    "legend": {
        "labelColor": CSS.ink,
        "labelFontSize": 12,
        "symbolSize": 80,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 0,
        "columnPadding": 16,
    },
    "title": {
        "color": CSS.ink,
        "subtitleColor": CSS.muted,
        "anchor": "start",
        "fontSize": 14,
        "fontWeight": 600,
        "subtitleFontSize": 12,
        "subtitlePadding": 6,
        "offset": 8,
    },
    "view": {"stroke": None},
    "text": {"fontSize": 11},
}


def chart(
    data: pd.DataFrame | list[dict[str, Any]] | Spec,
    layers: list[Spec],
    description: str,
    height: int = 300,
) -> Spec:
    """A whole specification, as wide as there is room.

    Args:
        data: a row for each mark; or what else Vega-Lite takes as data.
    """
    return {
        "data": data if isinstance(data, dict) else {"values": records(pd.DataFrame(data))},
        "params": [CHOSEN],
        "layer": layers,
        "width": "container",
        "height": height,
        "description": f"{description} The tables hold the same figures.",
        "background": None,
        "config": CONFIG,
    }


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them, rounded to what can be seen; what is missing is absent."""
    rows = json.loads(frame.to_json(orient="records", double_precision=7))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def edge_said(n: int) -> str:
    """What a picture's subtitle ends with where `n` marks lie beyond its axes."""
    return f" Triangles at the edge: {n} beyond the axes." if n else ""


def picture(
    result: SweepResult, charts: Mapping[str, Spec], title: str, subtitle: str, **rest: Any
) -> Spec:
    """Charts as one picture with a legend, a panel for each.

    Panels are in rows, as a browser draws none of a grid of them.

    Args:
        charts: by cell; "" for all cells together.
        rest: further properties of the specification.
    """
    n = len(charts)
    columns = 1 if n == 1 else 2 if n in (2, 4) else 3
    width, height = (760, 400) if columns == 1 else (330, 230)
    room = (columns * width + 60) // 7  # characters of the subtitle's line
    legend = {"title": None, "orient": "top", "columns": 6 if columns == 1 else 10}
    panels = []
    for cell, each in charts.items():
        panel = {"data": each["data"], "layer": each["layer"], "width": width, "height": height}
        panels.append(panel | ({"title": cell} if cell and len(result.cells) > 1 else {}))
    whole = {
        "title": {"text": f"{result.sweep['name']}: {title}", "subtitle": wrap(subtitle, room)},
        "params": [CHOSEN],
        "vconcat": [{"hconcat": panels[at : at + columns]} for at in range(0, n, columns)],
        "config": CONFIG,
        "background": CSS.surface,
        "padding": 16,
        **rest,
    }
    text = json.dumps(whole).replace('"legend": null', f'"legend": {json.dumps(legend)}')
    return json.loads(text)


def in_plain_colours(spec: Spec) -> Spec:
    """The specification with the colours of light pages, for a picture without a page."""
    text = json.dumps(spec)
    for variable, colour in zip(_colours(CSS), _colours(LIGHT), strict=True):
        text = text.replace(variable, colour)
    return json.loads(text)


def layer(
    kind: str, encoding: Spec, *, keep: str = "", opacity: float | None = None, **mark: Any
) -> Spec:
    """Marks of one kind, with their properties.

    Args:
        keep: an expression; rows for which it is false are not drawn.
        opacity: unless the reader has chosen another method.
    """
    if opacity is not None:
        shown = "chosen === '' || datum.method === chosen"
        faded = {"condition": {"test": shown, "value": opacity}, "value": 0.12 * opacity}
        encoding = encoding | {"opacity": faded}
    drawn = {"mark": {"type": kind, **mark}, "encoding": encoding}
    return {"transform": [{"filter": keep}], **drawn} if keep else drawn


def method_scales(result: SweepResult) -> tuple[Spec, Spec]:
    """The colour and the shape of each method."""
    marks = method_marks(result.methods, CSS)
    colour, shape = (
        {
            "field": "method",
            "type": "nominal",
            "scale": {"domain": list(marks), "range": [mark[place] for mark in marks.values()]},
            "legend": None,
        }
        for place in (0, 1)
    )
    return colour, shape


def axis(field: str, title: str, form: str = "", scale: Spec | None = None) -> Spec:
    """An axis, with a number's format; it need not begin at 0 unless its scale says so."""
    found: Spec = {"field": field, "type": "quantitative", "title": title}
    found["scale"] = {"zero": False} if scale is None else scale
    return found | ({"axis": {"format": form}} if form else {})


def tooltip(*same: str, **fields: str) -> list[Spec]:
    """What is shown of a mark that is pointed at: fields, with their names for the reader."""
    return [
        {"field": field, "title": title, "type": "quantitative", "format": FIGURES[field]}
        if field in FIGURES
        else {"field": field, "title": title, "type": "nominal"}
        for field, title in ({name: name for name in same} | fields).items()
    ]


def accuracies_shown(ends: Sequence[float]) -> Spec:
    """A scale from the least to the greatest of these accuracies, and a margin; 0 to 1 of none.

    It ends at 1 at most.
    """
    if not ends:
        return {"domain": [0.0, 1.0], "nice": False}
    margin = 0.06 * (max(ends) - min(ends)) or 0.02
    low, high = max(min(ends) - margin, 0.0), min(max(ends) + margin, 1.0)
    return {"domain": [low, high], "nice": False}


def fence(values: Sequence[float], side: int) -> float:
    """Beyond which a value is an outlier that would squeeze all others: Tukey's fence.

    Args:
        side: -1 for the lower fence, 1 for the upper.
    """
    if not values:
        return side * math.inf
    low, high = np.quantile(values, [0.25, 0.75])
    return float((low if side < 0 else high) + side * 1.5 * (high - low))


def at_the_edge(x: Spec, y: Spec, encoding: Spec, keep: str = "true") -> list[Spec]:
    """Marks of what lies beyond the axes, at their edges: below, and to the right.

    Args:
        x, y: the axes, each with a domain; fields of numbers.
        encoding: colour and tooltip of a mark.
        keep: which rows are drawn at all.
    """
    (_, most), (least, _) = x["scale"]["domain"], y["scale"]["domain"]
    below, beyond = f"datum.{y['field']} < {least}", f"datum.{x['field']} > {most}"
    inside_x = f"min(datum.{x['field']}, {most})"
    layers = []
    for test, fields, shape in (
        (below, {"edge_x": inside_x, "edge_y": f"{least}"}, "triangle-down"),
        (f"!({below}) && {beyond}", {"edge_x": f"{most}", "edge_y": f"datum.{y['field']}"},
         "triangle-right"),
    ):  # fmt: skip
        marks = encoding | {"x": {**x, "field": "edge_x"}, "y": {**y, "field": "edge_y"}}
        marks.pop("shape", None)
        edge = layer(
            "point", marks, keep=f"{keep} && ({test})", opacity=0.8, size=55, filled=True,
            shape=shape,
        )  # fmt: skip
        calculated = [{"calculate": how, "as": name} for name, how in fields.items()]
        edge["transform"] += calculated
        layers.append(edge)
    return layers


def _colours(palette: Palette) -> list[str]:
    return [*astuple(palette)[:-1], *palette.methods]


def unit(cost: str) -> float:
    """What a cost is divided by to be what its axis says."""
    return 1e6 if "(millions)" in COSTS[cost] else 1.0


def objective_in_words(name: str) -> str:
    """An objective of a sweep, to stand in a sentence."""
    name = chart_cost(name)
    return in_words(name) if name in COSTS else name.replace("val_", "validation ")


def chart_cost(objective: str) -> str:
    """What an objective is drawn as: a latency over that of the dense network, measured in turn."""
    return next((each for each, own in LATENCY_RATIOS.items() if own == objective), objective)


def in_words(cost: str) -> str:
    """What an axis says of a cost, without its unit, to stand in a sentence."""
    words = COSTS[cost].partition(" (")[0].removesuffix(" per image")
    return words[0].lower() + words[1:]
