"""Vega-Lite specifications: what all charts of the report share.

They are written out as dictionaries: a library that builds them takes a tenth of a second for each.
Colours are CSS variables on a page, so that one chart serves light, dark and print, and plain
colours in a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.palette import CSS, LIGHT, Palette, method_marks
from orchestrator.report.sweep_result import SweepResult

Spec = dict[str, Any]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
FIGURES = {  # fields of tooltips that are numbers, and how they are written
    **dict.fromkeys(("gone", "accuracy", "sparsity", "epoch", "step", "from", "images"), ".4~g"),
    "val_accuracy": ".3f",
}
CHOSEN: Spec = {"name": "chosen", "value": ""}  # the method pointed out on a page; others fade


def chart(
    data: Spec | Sequence[Mapping[str, Any]],
    layers: Sequence[Spec],
    description: str,
    palette: Palette = CSS,
    height: int = 300,
) -> Spec:
    """A whole specification, as wide as there is room.

    Args:
        data: rows, which are rounded to what can be seen; or what else Vega-Lite takes as data.
    """
    if not isinstance(data, dict):
        rounded = [
            {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
            for row in data
        ]
        data = {"values": rounded}
    return {
        "data": data,
        "params": [CHOSEN],
        "layer": list(layers),
        "width": "container",
        "height": height,
        "description": f"{description} The tables hold the same figures.",
        "background": None if palette is CSS else palette.surface,
        "config": _config(palette),
    }


def picture(
    result: SweepResult, charts: Mapping[str, Spec], title: str, subtitle: str, **rest: Any
) -> Spec:
    """Charts in plain colours as one picture with a legend, a panel for each.

    Args:
        charts: by cell; "" for all cells together.
        rest: further properties of the specification.
    """
    n = len(charts)
    columns = 1 if n == 1 else 2 if n in (2, 4) else 3
    width, height = (760, 400) if columns == 1 else (330, 230)
    legend = {"title": None, "orient": "top", "columns": 6 if columns == 1 else 10}
    panels = []
    for cell, each in charts.items():
        for layer in each["layer"]:
            for channel in {"color", "shape"} & layer["encoding"].keys():
                layer["encoding"][channel] = layer["encoding"][channel] | {"legend": legend}
        named = {"title": cell} if cell and len(result.cells) > 1 else {}
        panels.append({"data": each["data"], "layer": each["layer"], **named})
        panels[-1] |= {"width": width, "height": height}
    return {
        "title": {"text": f"{result.sweep['name']}: {title}", "subtitle": subtitle},
        "params": [CHOSEN],
        "concat": panels,
        "columns": columns,
        "config": _config(LIGHT),
        "background": LIGHT.surface,
        "padding": 16,
        **rest,
    }


def layer(kind: str, encoding: Spec, *, keep: str = "", **mark: Any) -> Spec:
    """Marks of one kind, with their properties.

    Args:
        keep: an expression; rows for which it is false are not drawn.
    """
    drawn = {"mark": {"type": kind, **mark}, "encoding": encoding}
    return {"transform": [{"filter": keep}], **drawn} if keep else drawn


def method_scales(result: SweepResult, palette: Palette) -> tuple[Spec, Spec]:
    """The colour and the shape of each method."""
    marks = method_marks(result.methods, palette)
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


def faded(opacity: float) -> Spec:
    """This opacity, unless the reader has chosen another method."""
    shown = "chosen === '' || datum.method === chosen"
    return {"condition": {"test": shown, "value": opacity}, "value": 0.12 * opacity}


def accuracies_shown(ends: Sequence[float]) -> Spec:
    """A scale of accuracies from the least to the greatest of these, and a margin."""
    margin = 0.06 * (max(ends) - min(ends)) or 0.02
    return {"domain": [min(ends) - margin, max(ends) + margin], "nice": False}


def _config(palette: Palette) -> Spec:
    """Quiet axes, so that the marks speak."""
    return {
        "font": FONT,
        "axis": {
            "labelColor": palette.muted,
            "titleColor": palette.ink,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": palette.grid,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "tickCount": {"expr": "6"},
        },
        "axisX": {"grid": False, "domain": True, "domainColor": palette.grid},
        "legend": {
            "labelColor": palette.ink,
            "labelFontSize": 12,
            "symbolSize": 80,
            "symbolOpacity": 1,
            "symbolStrokeWidth": 0,
            "columnPadding": 16,
        },
        "title": {
            "color": palette.ink,
            "subtitleColor": palette.muted,
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
