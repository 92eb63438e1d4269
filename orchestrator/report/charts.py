"""The report's charts: validation accuracy against a cost, one colour and mark per method.

A chart is a Vega-Lite specification without its data, which is kept once beside all charts under
the name `trials`. Colours are CSS variables in the HTML report, so that one chart serves light,
dark and print, and plain colours in the PNG.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from orchestrator.analysis.pareto import DENSE_COST, eligible, on_frontier_within
from orchestrator.analysis.uncertainty import standard_error
from orchestrator.formatting import accuracy, millions, milliseconds, percent
from orchestrator.palette import CSS, LIGHT, Palette, method_marks
from orchestrator.report.sweep_result import SweepResult

COSTS = {
    "multiplications": "Multiplications per image (millions)",
    "nonzero_multiplications": "Non-zero multiplications per image (millions)",
    "parameters": "Parameters (millions)",
    "latency_ms": "Latency of one image (ms)",
}
IN_MILLIONS = ("multiplications", "nonzero_multiplications", "parameters")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
MOST_CELLS_IN_PICTURE = 12
TOOLTIP = [
    alt.Tooltip("trial_id:N", title="trial"),
    alt.Tooltip("method:N"),
    alt.Tooltip("settings:N"),
    alt.Tooltip("cell:N"),
    alt.Tooltip("val_accuracy:Q", title="validation accuracy", format=".3f"),
    alt.Tooltip("tested:N", title="test accuracy"),
    alt.Tooltip("work:N", title="multiplications"),
    alt.Tooltip("latency:N"),
    alt.Tooltip("command:N", title="run it again"),
]

# The method that the reader points out on the page; the others fade.
CHOSEN = alt.param(name="chosen", value="")

Record = Mapping[str, Any]


def chart_data(result: SweepResult) -> list[dict[str, Any]]:
    """A record for each completed search trial: what the charts of every cost draw.

    `on_COST` says whether the trial is on the frontier between val_accuracy and that cost of its
    method and cell, and `overall_COST` of its data set. A figure that was not measured is absent.
    """
    completed = eligible(result.searched, {"val_accuracy": "maximize"})
    frame = completed[["trial_id", "method", "cell", "val_accuracy", "dense_val_accuracy"]].copy()
    frame["settings"] = [result.settings(row) for _, row in completed.iterrows()]
    frame["tested"] = completed["test_accuracy"].map(accuracy)
    frame["command"] = [result.command(row) for _, row in completed.iterrows()]
    errors = [
        1.96 * standard_error(*pair) / 100
        for pair in completed[["val_accuracy", "validation_images"]].astype(float).to_numpy()
    ]
    frame["low"], frame["high"] = frame["val_accuracy"] - errors, frame["val_accuracy"] + errors
    frame["work"] = [
        f"{millions(cost)} ({percent(cost / dense)} of dense)"
        for cost, dense in completed[["multiplications", "dense_multiplications"]].to_numpy()
    ]
    frame["latency"] = [
        f"{milliseconds(own)} (dense {milliseconds(dense)})"
        for own, dense in completed[["latency_ms", "dense_latency_ms"]].to_numpy()
    ]
    for cost, dense in DENSE_COST.items():
        pair = {"val_accuracy": "maximize", cost: "minimize"}
        measured = eligible(completed, pair)
        unit = 1e6 if cost in IN_MILLIONS else 1
        frame[cost] = completed[cost] / unit
        frame[f"dense_{cost}"] = completed[dense] / unit
        frame[f"on_{cost}"] = on_frontier_within(measured, ["cell", "method"], pair)
        frame[f"overall_{cost}"] = on_frontier_within(measured, ["dataset"], pair)
    on_top = frame.sort_values("method", key=lambda names: names == "dense", kind="stable")
    records = json.loads(on_top.to_json(orient="records", double_precision=6))
    return [{name: value for name, value in r.items() if value is not None} for r in records]


def frontier_chart(
    result: SweepResult,
    records: Sequence[Record],
    cost: str,
    cell: str | None,
    palette: Palette,
    legend: alt.Legend | None,
) -> alt.LayerChart | alt.FacetChart:
    """Validation accuracy against one cost; frontiers as steps, beaten trials faint.

    Args:
        records: of `chart_data`; the chart takes only the ranges of its axes from them.
        cell: the cell whose trials are drawn, with a frontier for each method; None draws all
            cells, with the one frontier over everything.
    """
    drawn = [record for record in records if cost in record and cell in (None, record["cell"])]
    accuracies = alt.Scale(domain=_accuracies_shown(records, cost), nice=False)  # as below_chart
    x = alt.X(f"{cost}:Q", title=COSTS[cost], scale=_cost_scale(drawn, cost, cell))
    y = alt.Y("val_accuracy:Q", title="Validation accuracy", scale=accuracies)
    marks = method_marks(result.methods, palette)
    colours, shapes = [colour for colour, _ in marks.values()], [path for _, path in marks.values()]
    colour = alt.Color("method:N", legend=legend).scale(domain=list(marks), range=colours)
    shape = alt.Shape("method:N", legend=legend).scale(domain=list(marks), range=shapes)

    here = f"isValid(datum.{cost})" + (f" && datum.cell === {json.dumps(cell)}" if cell else "")
    on_frontier = f"datum.{'on' if cell else 'overall'}_{cost}"
    trials = alt.Chart(alt.NamedData("trials")).transform_filter(here).encode(x=x, y=y)
    points = trials.encode(color=colour, shape=shape, tooltip=TOOLTIP)
    beaten = points.transform_filter(f"!{on_frontier}").encode(opacity=_faded(0.4))
    unbeaten = points.transform_filter(on_frontier).encode(opacity=_faded(1))
    steps = trials.transform_filter(on_frontier)
    if cell:
        steps = steps.encode(color=colour, opacity=_faded(1))
    return alt.layer(
        *_reference(result, cell, y, palette),
        beaten.mark_point(size=30, filled=True, clip=True),
        _intervals(steps, colour if cell else None, palette),
        steps.mark_line(interpolate="step-after", strokeWidth=2, color=palette.ink),
        unbeaten.mark_point(size=80, filled=True, stroke=palette.surface, strokeWidth=1),
    )


def _intervals(steps: alt.Chart, colour: alt.Color | None, palette: Palette) -> alt.Chart:
    """What 95 of 100 draws of as many validation images would show, on each frontier's trials."""
    bars = steps.transform_filter("isValid(datum.low)").encode(
        y=alt.Y("low:Q"), y2="high:Q", opacity=_faded(0.45)
    )
    if colour is not None:
        bars = bars.encode(color=colour)
    return bars.mark_rule(strokeWidth=1.5, color=palette.ink, clip=True)


def page_spec(
    result: SweepResult, records: Sequence[Record], cost: str, cell: str | None
) -> dict[str, Any]:
    """The chart for an HTML page: as wide as there is room, coloured by the page's CSS."""
    chart = frontier_chart(result, records, cost, cell, CSS, legend=None).properties(
        width="container",
        height=340,
        description=f"Validation accuracy against {in_words(cost)}. "
        "The tables hold the same figures.",
    )
    spec = chart.add_params(CHOSEN).to_dict(validate=False)
    del spec["$schema"]  # an address; the page must name none
    return {**spec, "background": None, "config": config(CSS)}


def picture_spec(result: SweepResult, records: Sequence[Record], cost: str) -> dict[str, Any]:
    """The frontiers in one picture: a panel for each cell, or for all where they are many."""
    cells: list[str | None] = [*result.cells]
    if not 0 < len(cells) <= MOST_CELLS_IN_PICTURE:
        cells = [None]
    columns, (width, height) = panels_laid_out(len(cells))
    legend = alt.Legend(title=None, orient="top", columns=6 if columns == 1 else 10)
    panels = [
        frontier_chart(result, records, cost, cell, LIGHT, legend).properties(
            width=width, height=height, **({} if columns == 1 else {"title": cell})
        )
        for cell in cells
    ]
    lines = "each method's frontier" if cells[0] else "the frontier over all settings"
    dashed = " Dashed: the dense network before fine-tuning." if cells[0] else ""
    below = below_chart(records, cost)
    missing = f" Trials below the axis: {below}." if below else ""
    drawn = f"Lines: {lines}. Faint: trials that others beat.{dashed}{missing}"
    title = alt.TitleParams(
        f"{result.sweep['name']}: validation accuracy against {in_words(cost)}",
        subtitle=drawn if records else "No trial completed.",
    )
    chart = alt.concat(*panels, columns=columns).properties(title=title).add_params(CHOSEN)
    spec = chart.to_dict(validate=False)
    spec |= {"config": config(LIGHT), "background": LIGHT.surface, "padding": 16}
    spec["datasets"] = {**spec.get("datasets", {}), "trials": list(records)}
    return spec


def panels_laid_out(n: int) -> tuple[int, tuple[int, int]]:
    """Columns of a picture of so many panels, and the width and height of each, in pixels."""
    columns = 1 if n == 1 else 2 if n in (2, 4) else 3
    return columns, (760, 400) if columns == 1 else (330, 230)


def in_words(cost: str) -> str:
    """What an axis says of a cost, without its unit, to stand in a sentence."""
    words = COSTS[cost].partition(" (")[0].removesuffix(" per image")
    return words[0].lower() + words[1:]


def below_chart(records: Sequence[Record], cost: str) -> int:
    """How many trials lie below the accuracies that the charts of this cost show."""
    lowest, _ = _accuracies_shown(records, cost)
    return sum(record["val_accuracy"] < lowest for record in records if cost in record)


def _accuracies_shown(records: Sequence[Record], cost: str) -> tuple[float, float]:
    """From the worst trial on any frontier to the best of all, their intervals and a margin.

    A trial that pruning ruined would otherwise squeeze all that matters into a strip.
    """
    marks = (f"on_{cost}", f"overall_{cost}")
    unbeaten = [record for record in records if any(record.get(mark) for mark in marks)]
    shown = [r.get(end, r["val_accuracy"]) for r in unbeaten for end in ("low", "high")]
    dense = [r["dense_val_accuracy"] for r in records if "dense_val_accuracy" in r]
    if not shown:
        return 0.0, 1.0
    low, high = min(shown + dense), max(shown + dense)
    margin = 0.06 * (high - low) or 0.02
    return low - margin, high + margin


def _cost_scale(drawn: Sequence[Record], cost: str, cell: str | None) -> alt.Scale:
    """From 0 to the dearest network; logarithmic where cells are an order of size apart."""
    dense = [record[f"dense_{cost}"] for record in drawn if f"dense_{cost}" in record]
    costs = [record[cost] for record in drawn] + dense
    if not costs:
        return alt.Scale(domain=[0, 1])
    if cell is None and dense and max(dense) > 4 * min(dense) and min(costs) > 0:
        return alt.Scale(type="log", domain=[0.8 * min(costs), 1.2 * max(costs)])
    return alt.Scale(domain=[0, 1.03 * max(costs)])


def _reference(
    result: SweepResult, cell: str | None, y: alt.Y, palette: Palette
) -> list[alt.Chart]:
    """The dense network's accuracy as a dashed line; over several cells it would be several."""
    trials = result.searched[result.searched["cell"] == cell]
    # On all validation images, where a row has that: some methods are judged on a part of them.
    whole_first = trials.sort_values("reward_images", na_position="first", kind="stable")
    value = whole_first.groupby("seed")["dense_val_accuracy"].first().mean()
    if pd.isna(value):
        return []
    label = f"dense {accuracy(value)}"  # short, so as not to lie over marks
    lines = alt.Chart(pd.DataFrame({"val_accuracy": [value], "label": [label]})).encode(y=y)
    return [
        lines.mark_rule(strokeDash=[4, 3], color=palette.muted),
        lines.mark_text(align="left", dx=4, dy=-7, color=palette.muted).encode(
            x=alt.value(0), text="label:N"
        ),
    ]


def _faded(opacity: float) -> Any:
    """This opacity, unless the reader has chosen another method."""
    shown = "chosen === '' || datum.method === chosen"
    return alt.condition(shown, alt.value(opacity), alt.value(0.12 * opacity))


def config(palette: Palette) -> dict[str, Any]:
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
