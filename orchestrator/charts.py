"""The report's charts: validation accuracy against a cost, one colour and mark per method.

A chart is a Vega-Lite specification without its data, which is kept once beside all charts under
the name `trials`. Colours are CSS variables in the HTML report, so that one chart serves light,
dark and print, and plain colours in the PNG.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from orchestrator.findings import SweepResult
from orchestrator.frontier import eligible, non_dominated

COSTS = {  # each axis, its title, and the column of the dense network's own cost
    "multiplications": ("Multiplications per image (millions)", "dense_multiplications"),
    "nonzero_multiplications": (
        "Multiplications per image by non-zero weights (millions)",
        "dense_multiplications",
    ),
    "parameters": ("Parameters (millions)", "dense_parameters"),
    "latency_ms": ("Latency of one image (ms)", "dense_latency_ms"),
}
IN_MILLIONS = ("multiplications", "nonzero_multiplications", "parameters")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Palette:
    """The colours of a page and its charts, apart also for the colour-blind."""

    surface: str
    ink: str
    muted: str
    grid: str
    control: str
    methods: tuple[str, ...]


# After Okabe and Ito 2008, darkened or lightened until each stands out from its surface.
LIGHT = Palette(
    surface="#ffffff",
    ink="#1b1f24",
    muted="#5b6570",
    grid="#e3e7eb",
    control="#87919c",
    methods=("#0072b2", "#d55e00", "#009370", "#b5489a", "#b98500", "#3a9bd0", "#7d4b22"),
)
DARK = Palette(
    surface="#14171a",
    ink="#eceff2",
    muted="#a3adb8",
    grid="#2d343b",
    control="#8b96a2",
    methods=("#5aaee8", "#ff8f4f", "#3ccb9d", "#e58fd0", "#edb83f", "#93d8f8", "#c9a07c"),
)
CSS = Palette(
    surface="var(--surface)",
    ink="var(--ink)",
    muted="var(--muted)",
    grid="var(--grid)",
    control="var(--control)",
    methods=tuple(f"var(--method-{number})" for number in range(len(LIGHT.methods))),
)


def chart_data(result: SweepResult) -> list[dict[str, Any]]:
    """A record for each completed search trial: what the charts of every cost draw.

    `on_COST` says whether the trial is on the frontier between val_accuracy and that cost of its
    method and cell, and `overall_COST` of its data set. A figure that was not measured is absent.
    """
    completed = eligible(result.searched, {"val_accuracy": "maximize"})
    frame = completed[["trial_id", "method", "cell", "val_accuracy", "test_accuracy", *COSTS]]
    frame = frame.assign(
        share=completed["multiplications"] / completed["dense_multiplications"],
        settings=[settings_of(row) for _, row in completed.iterrows()],
    )
    for cost in COSTS:
        pair = {"val_accuracy": "maximize", cost: "minimize"}
        measured = eligible(completed, pair)
        frame[f"on_{cost}"] = on_frontier_within(measured, ["cell", "method"], pair)
        frame[f"overall_{cost}"] = on_frontier_within(measured, ["dataset"], pair)
        if cost in IN_MILLIONS:
            frame[cost] = frame[cost] / 1e6
    records = json.loads(frame.to_json(orient="records", double_precision=6))
    return [{name: value for name, value in r.items() if value is not None} for r in records]


def settings_of(row: pd.Series) -> str:
    """The options of a trial's method: keep_ratio 0.52, rounds 3"""
    prefix = f"{row['method']}."
    options = {
        name.removeprefix(prefix): value
        for name, value in row.items()
        if str(name).startswith(prefix) and not pd.isna(value)
    }
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in options.items()
    )


def frontier_chart(
    result: SweepResult,
    records: Sequence[Record],
    cost: str,
    palette: Palette,
    cell: str | None,
    size: tuple[int | Literal["container"], int] = ("container", 340),
) -> alt.LayerChart:
    """Validation accuracy against one cost; frontiers as steps, beaten trials faint.

    Args:
        records: of `chart_data`; the chart takes only the ranges of its axes from them.
        cell: the cell whose trials are drawn, with a frontier for each method; None draws all
            cells, with the one frontier over everything.
        size: width and height in pixels; "container" is as wide as the page has room.
    """
    drawn = [r for r in records if cost in r and cell in (None, r["cell"])]
    dense = _dense_networks(result, cost, cell)
    x = alt.X(f"{cost}:Q", title=COSTS[cost][0], scale=_cost_scale(drawn, dense, cost))
    y = alt.Y("val_accuracy:Q", title="Validation accuracy", scale=_accuracy_scale(records, cost))
    colours, shapes = _marks(result.methods, palette)
    legend = alt.Legend(title=None, orient="top", columns=alt.ExprRef("max(2, floor(width / 140))"))
    colour = alt.Color("method:N", legend=legend).scale(domain=result.methods, range=colours)
    shape = alt.Shape("method:N", legend=legend).scale(domain=result.methods, range=shapes)
    chosen = alt.selection_point(fields=["method"], bind="legend", name=f"chosen_{cost}")

    here = f"isValid(datum.{cost})" + (f" && datum.cell === {json.dumps(cell)}" if cell else "")
    on_frontier = f"datum.{'on' if cell else 'overall'}_{cost}"
    trials = alt.Chart(alt.NamedData("trials")).transform_filter(here)
    points = trials.transform_calculate(
        tested="isValid(datum.test_accuracy) ? format(datum.test_accuracy, '.3f') : 'not tested'"
    ).encode(x=x, y=y, color=colour, shape=shape, tooltip=_tooltip(drawn))
    beaten = points.transform_filter(f"!{on_frontier}").encode(
        opacity=alt.when(chosen).then(alt.value(0.35)).otherwise(alt.value(0.05))
    )
    unbeaten = points.transform_filter(on_frontier).encode(
        opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.1))
    )
    steps = trials.transform_filter(on_frontier).encode(x=x, y=y)
    if cell:  # one frontier for each method, in its colour
        steps = steps.encode(
            color=colour,
            opacity=alt.when(chosen).then(alt.value(0.9)).otherwise(alt.value(0.1)),
        )
    reference = alt.Chart(dense).encode(y=y)
    chart = alt.layer(
        reference.mark_rule(strokeDash=[4, 3], color=palette.muted, clip=True),
        reference.mark_text(align="left", dx=4, dy=-7, color=palette.muted, clip=True).encode(
            x=alt.value(0), text="label:N"
        ),
        beaten.mark_point(size=30, filled=True, clip=True),
        steps.mark_line(interpolate="step-after", strokeWidth=2, color=palette.ink, clip=True),
        unbeaten.mark_point(size=90, filled=True, stroke=palette.surface, strokeWidth=1)
        .add_params(chosen),
    )
    width, height = size
    return chart.properties(width=width, height=height)
