"""Chart of all trials: validation accuracy against a cost, with each method's Pareto front.

The trials are no part of a chart; a page keeps them once beside all charts, under the name
`trials`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.pareto import (
    DATA,
    DENSE_COST,
    LATENCY_RATIOS,
    eligible,
    on_frontier_within,
    with_ratios,
    with_split,
)
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import standard_error
from orchestrator.formatting import accuracy, millions, milliseconds, percent, ratio
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
    completed = with_ratios(eligible(result.searched, {"val_accuracy": "maximize"}))
    frame = completed[["trial_id", "method", "cell", "val_accuracy", "dense_val_accuracy"]].copy()
    frame["data"] = completed["cell"].map(result.data_of)
    frame["settings"] = [result.settings(row) for row in completed.to_dict("records")]
    frame["tested"] = completed["test_accuracy"].map(accuracy)
    frame["command"] = [result.command(row) for _, row in completed.iterrows()]
    errors = [
        1.96 * standard_error(*pair) / 100
        for pair in completed[["val_accuracy", "validation_images"]].astype(float).to_numpy()
    ]
    frame["low"] = (frame["val_accuracy"] - errors).clip(lower=0)
    frame["high"] = (frame["val_accuracy"] + errors).clip(upper=1)
    frame["work"] = [
        f"{millions(cost)} ({percent(cost / dense)} of dense)"
        for cost, dense in completed[["multiplications", "dense_multiplications"]].to_numpy()
    ]
    frame["latency"] = [
        f"{ratio(one)} of dense ({milliseconds(own)}), {ratio(many)} at batch 128"
        for one, many, own in completed[[*LATENCY_RATIOS, "latency_ms"]].to_numpy(float)
    ]
    for cost in COSTS:
        pair = {"val_accuracy": "maximize", cost: "minimize"}
        measured = eligible(completed, pair)
        frame[cost] = completed[cost] / unit(cost)
        dense = completed[DENSE_COST[cost]] if cost in DENSE_COST else 1.0
        frame[f"dense_{cost}"] = dense / unit(cost)
        frame[f"on_{cost}"] = on_frontier_within(measured, ["cell", "method"], pair)
        frame[f"overall_{cost}"] = on_frontier_within(with_split(measured), DATA, pair)
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
    y = vega.axis("val_accuracy", "Validation accuracy", scale=_accuracy_scale(trials, cost, cell))
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
    dense = f"{here} && datum.method === 'dense'"
    on_front = f"datum.{'on' if cell else 'overall'}_{cost}"
    marks = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": told}
    steps = {"x": x, "y": y} | ({"color": colour} if cell else {})
    # What 95 of 100 draws of as many validation images would show.
    intervals = steps | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    (least, _), (_, most) = y["scale"]["domain"], x["scale"]["domain"]
    inside = f"datum.val_accuracy >= {least} && datum.{cost} <= {most}"
    front = f"{here} && {on_front}"
    layers = [
        *_dense_accuracy(result, cell, y),
        vega.layer(
            "point", marks, keep=f"{here} && !{on_front} && {inside} && datum.method !== 'dense'",
            opacity=0.4, size=30, filled=True,
        ),
        *vega.at_the_edge(x, y, marks, here),
        vega.layer(
            "rule", intervals, keep=f"{front} && isValid(datum.low)", opacity=0.45, clip=True,
            strokeWidth=1.5, color=CSS.ink,
        ),
        vega.layer(
            "line", steps, keep=front, opacity=1 if cell else None, interpolate="step-after",
            strokeWidth=2, color=CSS.ink, clip=True,
        ),
        *(
            vega.layer(
                "point", marks, keep=keep, opacity=1, size=size, filled=True, stroke=CSS.surface,
                strokeWidth=1,
            )
            for keep, size in (
                (f"{front} && {inside} && datum.method !== 'dense'", 80),
                (f"{dense} && {inside}", 120),
            )
        ),
    ]  # fmt: skip
    what = f"Validation accuracy against {in_words(cost)}."
    return vega.chart({"name": "trials"}, layers, what, height=340)


def pareto_picture(result: SweepResult, trials: Sequence[DrawnTrial], cost: str) -> vega.Spec:
    """The Pareto fronts in one picture: a panel for each cell, or for all where they are many."""
    few = 0 < len(result.cells) <= MOST_CELLS_IN_PICTURE or len(set(result.data_of.values())) > 1
    cells = result.cells if few else [""]
    lines = "each method's frontier" if cells[0] else "the frontier over all settings"
    dashed = " Dashed: the dense network." if cells[0] else ""
    missing = vega.edge_said(beyond_axes(trials, cost))
    drawn = f"Lines: {lines}. Faint: trials that others beat.{dashed}{missing}"
    return vega.picture(
        result,
        {cell: pareto_chart(result, trials, cost, cell) for cell in cells},
        f"validation accuracy against {in_words(cost)}",
        drawn if trials else "No trial completed.",
        datasets={"trials": list(trials)},
    )


def beyond_axes(trials: Sequence[DrawnTrial], cost: str) -> int:
    """How many trials lie beyond the axes of their cell's chart of this cost."""
    beyond = 0
    for cell in {each["cell"] for each in trials}:
        own = [each for each in trials if cost in each and each["cell"] == cell]
        least = _accuracy_scale(trials, cost, cell)["domain"][0]
        most = _cost_scale(own, cost, cell)["domain"][1]
        beyond += sum(each["val_accuracy"] < least or each[cost] > most for each in own)
    return beyond


def _accuracy_scale(trials: Sequence[DrawnTrial], cost: str, cell: str) -> vega.Spec:
    """From the worst trial on any Pareto front to the best of all, with their intervals.

    Of all cells on the same data, so that their charts compare, and without outliers: a trial that
    pruning ruined would squeeze all that matters into a strip.
    """
    data = {each.get("data") for each in trials if cell in ("", each["cell"])}
    trials = [each for each in trials if each.get("data") in data]
    fronts = (f"on_{cost}", f"overall_{cost}")
    unbeaten = [each for each in trials if any(each.get(front) for front in fronts)]
    least = vega.fence([each["val_accuracy"] for each in unbeaten], -1)
    unbeaten = [each for each in unbeaten if each["val_accuracy"] >= least]
    shown = [each.get(end, each["val_accuracy"]) for each in unbeaten for end in ("low", "high")]
    dense = [each["dense_val_accuracy"] for each in trials if "dense_val_accuracy" in each]
    return vega.accuracies_shown(shown + dense if shown else [])


def _cost_scale(drawn: Sequence[DrawnTrial], cost: str, cell: str) -> vega.Spec:
    """From 0 to the dearest network on a front, but for outliers.

    Logarithmic where cells are an order of size apart.
    """
    dense = [each[f"dense_{cost}"] for each in drawn if f"dense_{cost}" in each]
    fronts = (f"on_{cost}", f"overall_{cost}")
    costs = [each[cost] for each in drawn if any(each.get(front) for front in fronts)]
    most = vega.fence(costs, 1)
    costs = [each for each in costs if each <= most] + dense
    costs += [each[cost] for each in drawn if each["method"] == "dense"]
    if not costs:
        return {"domain": [0, 1]}
    if not cell and dense and max(dense) > 4 * min(dense) and min(costs) > 0:
        least = min(each[cost] for each in drawn)
        return {"type": "log", "domain": [0.8 * (least or min(costs)), 1.2 * max(costs)]}
    return {"domain": [0, 1.03 * max(costs)]}


def _dense_accuracy(result: SweepResult, cell: str, y: vega.Spec) -> list[vega.Spec]:
    """The dense network's accuracy as a dashed line; over several cells it would be several.

    Of the one that was fine-tuned as the others; where there is none, before fine-tuning.
    """
    trials = result.searched[result.searched["cell"] == cell]
    tuned = trials[(trials["method"] == "dense") & (trials["status"] == "completed")]
    value, label = tuned["val_accuracy"].mean(), "dense"
    if pd.isna(value):
        # On all validation images, where a row has that: some methods are judged on a part of them.
        whole_first = trials.sort_values("reward_images", na_position="first", kind="stable")
        value = whole_first.groupby("seed")["dense_val_accuracy"].first().mean()
        label = "dense, not fine-tuned"
    if pd.isna(value):
        return []
    label = f"{label} {accuracy(value)}"  # short, so as not to lie over marks
    words = {"x": {"value": 0}, "y": y, "text": {"field": "label", "type": "nominal"}}
    data = {"data": {"values": [{"val_accuracy": value, "label": label}]}}
    return [
        data | vega.layer("rule", {"y": y}, strokeDash=[4, 3], color=CSS.muted),
        data | vega.layer("text", words, align="left", dx=4, dy=-7, color=CSS.muted),
    ]
