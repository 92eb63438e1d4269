"""Charts over seeds: means of confirmed points and of options, and what so many seeds reach."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import on_frontier_within
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, mean_and_deviation, millions, percent
from orchestrator.palette import CSS
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.charts.vega_lite import COSTS, unit


def confirmed_charts(result: SweepResult) -> dict[str, vega.Spec]:
    """Test accuracy of each cell's confirmed points, mean and deviation, and the search's figures.

    A step joins those of a method that none of its others beats. A cell without any has no chart.
    """
    points = result.confirmed
    searched = points["search_val_accuracy"]
    values = _means(result, points, "test", "multiplications").assign(
        beside=searched,
        beside_said=[f"{accuracy(value)}, the search's validation" for value in searched],
        unbeaten=on_frontier_within(
            points, ["cell", "method"], {"test_accuracy": "maximize", "multiplications": "minimize"}
        ),
    )
    what = "Test accuracy of confirmed trials against multiplications."
    return _charts(result, values, "multiplications", "Accuracy", what)


def repeated_charts(result: SweepResult, cost: str) -> dict[str, vega.Spec]:
    """Validation accuracy of each cell's options, mean and deviation over seeds; test accuracy.

    A step joins the means of a method that none of its other means beats. A cell that no options
    repeat in has no chart.

    Args:
        cost: a column of `repeated`.
    """
    known = result.repeated[result.repeated[cost].notna()]
    all_tested = known["tested"] == known["n"]
    tested = zip(all_tested, known["test_accuracy"], known["test_deviation"], strict=True)
    values = _means(result, known, "val", cost).assign(
        beside=known["test_accuracy"].where(all_tested),
        beside_said=[
            f"{mean_and_deviation(*figures)}, test images" if of_all else "not all on test images"
            for of_all, *figures in tested
        ],
        unbeaten=on_frontier_within(
            known, ["cell", "method"], {"val_accuracy": "maximize", cost: "minimize"}
        ),
    )
    what = f"Validation accuracy, means over seeds, against {COSTS[cost].lower()}."
    return _charts(result, values, cost, "Validation accuracy", what)


def means_below_axis(charts: Mapping[str, vega.Spec]) -> int:
    """How many means lie below the axes of these charts."""
    return sum(
        value["mean"] < each["layer"][0]["encoding"]["y"]["scale"]["domain"][0]
        for each in charts.values()
        for value in each["data"]["values"]
    )


def _means(result: SweepResult, points: pd.DataFrame, images: str, cost: str) -> pd.DataFrame:
    """Points as they are drawn: means over seeds, with deviations to either side unless n is 1.

    Args:
        images: "val" or "test", of which the accuracies are.
    """
    trials = [result.by_id.loc[name] for name in points["trial_id"]]
    mean, deviation = points[f"{images}_accuracy"], points[f"{images}_deviation"]
    around, kind = deviation.fillna(0), {"val": "validation", "test": "test"}[images]
    return points[["cell", "method"]].assign(
        work=[
            f"{millions(each)} ({percent(share)} of dense)"
            for each, share in points[["multiplications", "share"]].to_numpy()
        ],
        trial=points["trial_id"],
        settings=[result.settings(trial) for trial in trials],
        command=[result.command(trial) for trial in trials],
        mean=mean,
        low=(mean - around).clip(lower=0),
        high=(mean + around).clip(upper=1),
        cost=points[cost] / unit(cost),
        said=[
            f"{mean_and_deviation(*figures)}, n = {n}, {kind} images"
            for *figures, n in zip(mean, deviation, points["n"], strict=True)
        ],
    )


def _charts(
    result: SweepResult, values: pd.DataFrame, cost: str, accuracies: str, description: str
) -> dict[str, vega.Spec]:
    """A chart for each cell that has values; all on the same data have one axis of accuracies.

    Means are filled, with a deviation to either side, and hollow is what stands beside them. A step
    joins the unbeaten ones.

    Args:
        accuracies: the title of that axis.
    """
    colour, shape = vega.method_scales(result)
    told = vega.tooltip(
        trial="its first trial",
        method="method",
        settings="settings",
        said="filled",
        beside_said="hollow",
        work="multiplications",
        command="run that again",
    )
    values = values.sort_values("method", key=lambda names: names == "dense", kind="stable")
    data = values["cell"].map(result.data_of)
    charts = {}
    for cell in result.cells:
        own = values[values["cell"] == cell]
        if own.empty:
            continue
        scale = _accuracy_scale(values[data == result.data_of[cell]])
        y, least = vega.axis("mean", accuracies, scale=scale), scale["domain"][0]
        x = vega.axis("cost", COSTS[cost], scale={"domain": [0, 1.03 * own["cost"].max()]})
        steps = {"x": x, "y": y, "color": colour}
        ends = steps | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        marks = steps | {"shape": shape, "tooltip": told}
        hollow = marks | {"y": {**y, "field": "beside"}}
        layers = [
            vega.layer(
                "line", steps, keep="datum.unbeaten", opacity=0.6, interpolate="step-after",
                strokeWidth=1.5, clip=True,
            ),
            *vega.at_the_edge(x, y, marks),
            vega.layer(
                "rule", ends, keep=f"datum.mean >= {least}", opacity=1, strokeWidth=2, clip=True
            ),
            vega.layer(
                "point", hollow, keep=f"isValid(datum.beside) && datum.beside >= {least}",
                opacity=0.45, size=45, filled=False, strokeWidth=1,
            ),
            vega.layer(
                "point", marks, keep=f"datum.mean >= {least}", opacity=1, size=90, filled=True,
                strokeWidth=1, stroke=CSS.surface,
            ),
        ]  # fmt: skip
        charts[cell] = vega.chart(own, layers, description)
    return charts


def _accuracy_scale(values: pd.DataFrame) -> vega.Spec:
    """What no other mean of its method and cell beats, and all means above the least of these.

    Without outliers: an option that pruning ruined would squeeze all that matters into a strip.
    """
    unbeaten = values[values["unbeaten"]]
    unbeaten = unbeaten[unbeaten["mean"] >= vega.fence(unbeaten["mean"].tolist(), -1)]
    shown = values[values["mean"] >= unbeaten["low"].min()]
    return vega.accuracies_shown(shown[["low", "high", "beside"]].stack().dropna().tolist())


def attainment_chart(result: SweepResult, surfaces: pd.DataFrame) -> vega.Spec | None:
    """The accuracy at each cost that all, half and one of the seeds reach.

    Args:
        surfaces: of `attainment`, in one cell.
    """
    if surfaces.empty:
        return None
    ends = surfaces.groupby(["method", "reached_by"], sort=False).tail(1)
    to_the_right = ends.assign(share=ends["share"].clip(lower=1))
    steps = pd.concat([surfaces, to_the_right]).rename(columns={"val_accuracy": "accuracy"})
    count, n = steps["reached_by"], steps["seeds"]
    dashes = {"every seed": [1, 0], "half of the seeds": [5, 3], "one seed": [1, 3]}
    every, half, one = dashes
    by = np.select([count == n, count == 1], [every, one], half)
    legend = {"title": "reached by", "orient": "top", "symbolType": "stroke", "symbolSize": 400}
    legend |= {"symbolStrokeColor": CSS.ink, "symbolStrokeWidth": 2, "titleColor": CSS.muted}
    scale = {"domain": list(dashes), "range": list(dashes.values())}
    encoding = {
        "x": vega.axis("share", "Share of the dense network's multiplications", "%"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "color": vega.method_scales(result)[0],
        "strokeDash": {
            "field": "by",
            "type": "nominal",
            "scale": scale,
            "legend": {**legend, "titleFontWeight": "normal"},
        },
    }
    return vega.chart(
        steps[["method", "share", "accuracy"]].assign(by=by),
        [vega.layer("line", encoding, opacity=0.9, interpolate="step-after", strokeWidth=1.8)],
        "Accuracies that all, half and one of the seeds reach at each cost.",
    )
