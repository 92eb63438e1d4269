"""What the written-out Vega-Lite specifications share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.palette import CSS, LIGHT, Palette, method_marks
from orchestrator.report.charts import config
from orchestrator.report.sweep_result import SweepResult

Spec = dict[str, Any]
FIGURES = {"gone", "accuracy", "sparsity", "epoch", "step", "from", "images"}  # in tooltips


def spec_of(
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


def method_scales(result: SweepResult, palette: Palette) -> tuple[Spec, Spec]:
    """The colour and the shape of each method."""
    marks = method_marks(result.methods, palette)
    found = []
    for place in (0, 1):
        scale = {"domain": list(marks), "range": [mark[place] for mark in marks.values()]}
        found.append({"field": "method", "type": "nominal", "scale": scale, "legend": None})
    return found[0], found[1]


def axis(field: str, title: str, form: str = "") -> Spec:
    """An axis that need not begin at 0."""
    found: Spec = {"field": field, "type": "quantitative", "title": title}
    return found | {"scale": {"zero": False}} | ({"axis": {"format": form}} if form else {})


def tooltip(fields: Mapping[str, str]) -> list[Spec]:
    """What is shown of a mark that is pointed at: the field, and its name for the reader."""
    return [
        {"field": field, "title": title}
        | ({"type": "quantitative", "format": ".4~g"} if field in FIGURES else {"type": "nominal"})
        for field, title in fields.items()
    ]


def faded(opacity: float) -> Spec:
    """This opacity, unless the reader has chosen another method."""
    shown = "chosen === '' || datum.method === chosen"
    return {"condition": {"test": shown, "value": opacity}, "value": 0.12 * opacity}
