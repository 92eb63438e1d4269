"""Chart of all trials: validation accuracy against a cost, with each method's Pareto front.

The trials are no part of a chart; a page keeps them once beside all charts, under the name
`trials`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.pareto import DENSE_COST, eligible, on_frontier_within
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import standard_error
from orchestrator.formatting import accuracy, millions, milliseconds, percent
from orchestrator.palette import CSS
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.charts.vega_lite import COSTS, in_words, unit

MOST_CELLS_IN_PICTURE = 12
DrawnTrial = Mapping[str, Any]


def drawn_trials(result: SweepResult) -> list[dict[str, Any]]:
    """Each completed search trial as the charts of every cost draw it.

    `on_COST` says whether the trial is on the Pareto front between val_accuracy and that cost of
    its method and cell, and `overall_COST` of its data set. What was not measured is absent.
    """
    completed = eligible(result.searched, {"val_accuracy": "maximize"})
    frame = completed[["trial_id", "method", "cell", "val_accuracy", "dense_val_accuracy"]].copy()
    frame["settings"] = [result.settings(row) for row in completed.to_dict("records")]
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
        frame[cost] = completed[cost] / unit(cost)
        frame[f"dense_{cost}"] = completed[dense] / unit(cost)
        frame[f"on_{cost}"] = on_frontier_within(measured, ["cell", "method"], pair)
        frame[f"overall_{cost}"] = on_frontier_within(measured, ["dataset"], pair)
    on_top = frame.sort_values("method", key=lambda names: names == "dense", kind="stable")
    return vega.records(on_top)


def pareto_chart(
    result: SweepResult, trials: Sequence[DrawnTrial], cost: str, cell: str
) -> vega.Spec:
    """Validation accuracy against one cost; Pareto fronts as steps, beaten trials faint.

    Args:
        trials: of `drawn_trials`; the chart takes only the ranges of its axes from them.
        cell: the cell whose trials are drawn, with a front for each method; "" draws all cells,
            with the one front over everything.
    """
    drawn = [each for each in trials if cost in each and cell in ("", each["cell"])]
    x = vega.axis(cost, COSTS[cost], scale=_cost_scale(drawn, cost, cell))
    y = vega.axis("val_accuracy", "Validation accuracy", scale=_accuracy_scale(trials, cost))
    colour, shape = vega.method_scales(result)
    told = vega.tooltip(
        trial_id="trial",
        method="method",
        settings="settings",
        cell="cell",
        val_accuracy="validation accuracy",
        tested="test accuracy",
        work="multiplications",
        latency="latency",
        command="run it again",
    )
    here = f"isValid(datum.{cost})" + (f" && datum.cell === {json.dumps(cell)}" if cell else "")
    on_front = f"datum.{'on' if cell else 'overall'}_{cost}"
    marks = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": told}
    steps = {"x": x, "y": y} | ({"color": colour} if cell else {})
    # What 95 of 100 draws of as many validation images would show.
    intervals = steps | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    front = f"{here} && {on_front}"
    layers = [
        *_dense_accuracy(result, cell, y),
        vega.layer(
            "point", marks, keep=f"{here} && !{on_front}", opacity=0.4, size=30, filled=True,
            clip=True,
        ),
        vega.layer(
            "rule", intervals, keep=f"{front} && isValid(datum.low)", opacity=0.45, clip=True,
            strokeWidth=1.5, color=CSS.ink,
        ),
        vega.layer(
            "line", steps, keep=front, opacity=1 if cell else None, interpolate="step-after",
            strokeWidth=2, color=CSS.ink,
        ),
        vega.layer(
            "point", marks, keep=front, opacity=1, size=80, filled=True, stroke=CSS.surface,
            strokeWidth=1,
        ),
    ]  # fmt: skip
    what = f"Validation accuracy against {in_words(cost)}."
    return vega.chart({"name": "trials"}, layers, what, height=340)


def pareto_picture(result: SweepResult, trials: Sequence[DrawnTrial], cost: str) -> vega.Spec:
    """The Pareto fronts in one picture: a panel for each cell, or for all where they are many."""
    cells = result.cells if 0 < len(result.cells) <= MOST_CELLS_IN_PICTURE else [""]
    lines = "each method's frontier" if cells[0] else "the frontier over all settings"
    dashed = " Dashed: the dense network before fine-tuning." if cells[0] else ""
    missing = f" Trials below the axis: {below}." if (below := below_axis(trials, cost)) else ""
    drawn = f"Lines: {lines}. Faint: trials that others beat.{dashed}{missing}"
    return vega.picture(
        result,
        {cell: pareto_chart(result, trials, cost, cell) for cell in cells},
        f"validation accuracy against {in_words(cost)}",
        drawn if trials else "No trial completed.",
        datasets={"trials": list(trials)},
    )


def below_axis(trials: Sequence[DrawnTrial], cost: str) -> int:
    """How many trials lie below the accuracies that the charts of this cost show."""
    lowest = _accuracy_scale(trials, cost)["domain"][0]
    return sum(each["val_accuracy"] < lowest for each in trials if cost in each)


def _accuracy_scale(trials: Sequence[DrawnTrial], cost: str) -> vega.Spec:
    """From the worst trial on any Pareto front to the best of all, with their intervals.

    A trial that pruning ruined would otherwise squeeze all that matters into a strip.
    """
    fronts = (f"on_{cost}", f"overall_{cost}")
    unbeaten = [each for each in trials if any(each.get(front) for front in fronts)]
    shown = [each.get(end, each["val_accuracy"]) for each in unbeaten for end in ("low", "high")]
    dense = [each["dense_val_accuracy"] for each in trials if "dense_val_accuracy" in each]
    return vega.accuracies_shown(shown + dense if shown else [])


def _cost_scale(drawn: Sequence[DrawnTrial], cost: str, cell: str) -> vega.Spec:
    """From 0 to the dearest network; logarithmic where cells are an order of size apart."""
    dense = [each[f"dense_{cost}"] for each in drawn if f"dense_{cost}" in each]
    costs = [each[cost] for each in drawn] + dense
    if not costs:
        return {"domain": [0, 1]}
    if not cell and dense and max(dense) > 4 * min(dense) and min(costs) > 0:
        return {"type": "log", "domain": [0.8 * min(costs), 1.2 * max(costs)]}
    return {"domain": [0, 1.03 * max(costs)]}


def _dense_accuracy(result: SweepResult, cell: str, y: vega.Spec) -> list[vega.Spec]:
    """The dense network's accuracy as a dashed line; over several cells it would be several."""
    trials = result.searched[result.searched["cell"] == cell]
    # On all validation images, where a row has that: some methods are judged on a part of them.
    whole_first = trials.sort_values("reward_images", na_position="first", kind="stable")
    value = whole_first.groupby("seed")["dense_val_accuracy"].first().mean()
    if pd.isna(value):
        return []
    label = f"dense {accuracy(value)}"  # short, so as not to lie over marks
    words = {"x": {"value": 0}, "y": y, "text": {"field": "label", "type": "nominal"}}
    data = {"data": {"values": [{"val_accuracy": value, "label": label}]}}
    return [
        data | vega.layer("rule", {"y": y}, strokeDash=[4, 3], color=CSS.muted),
        data | vega.layer("text", words, align="left", dx=4, dy=-7, color=CSS.muted),
    ]
