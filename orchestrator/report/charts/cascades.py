"""Chart of the cascades that a sweep's own networks make, beside these networks alone."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.cascades import OwnCascade
from orchestrator.analysis.own_networks import OwnNetworks
from orchestrator.analysis.pareto import TRADE, non_dominated
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, millions, percent
from orchestrator.palette import CSS, method_marks
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.charts.vega_lite import COSTS, unit

COST = "multiplications"
ALONE, CASCADE = "networks alone", "cascades of them"
Shown = Sequence[tuple[OwnNetworks, Sequence[OwnCascade]]]


def cascade_charts(result: SweepResult, shown: Shown) -> dict[str, vega.Spec]:
    """Accuracy against multiplications of each cell's cascades and networks alone.

    All are chosen on one half of the validation images, and drawn as they do on the other. A step
    joins what nothing beat on the half that chose, for each seed its own.

    Args:
        shown: of `OwnCascades`. A cell without any has no chart.
    """
    charts = {}
    for cell in result.cells:
        own = [(networks, found) for networks, found in shown if networks.cell == cell]
        if own:
            values = [
                {**each, "of": number}
                for number, (networks, found) in enumerate(own)
                for each in [*_alone(result, networks), *map(_cascade, found)]
            ]
            charts[cell] = _chart(result, pd.DataFrame(values))
    return charts


def _alone(result: SweepResult, networks: OwnNetworks) -> list[dict[str, Any]]:
    alone = networks.alone
    return [
        {
            "kind": ALONE,
            "method": row["method"],
            "networks": result.title(row),
            "accuracy": row["accuracy"],
            "cost": row[COST] / unit(COST),
            "work": f"{millions(row[COST])} ({percent(row['share'])} of dense)",
            "unbeaten": bool(unbeaten),
        }
        for (_, row), unbeaten in zip(alone.iterrows(), non_dominated(alone, TRADE), strict=True)
    ]


def _cascade(own: OwnCascade) -> dict[str, Any]:
    return {
        "kind": CASCADE,
        "method": CASCADE,
        "networks": " → ".join(own.networks),
        "accuracy": own.accuracy,
        "cost": own.multiplications / unit(COST),
        "work": f"{millions(own.multiplications)} ({percent(own.share)} of dense)",
        "unbeaten": True,
        "reached": ", ".join(map(percent, own.reached)),
        "beside": f"{accuracy(own.alone_accuracy)}, {own.alone}",
        "random": accuracy(own.at_random),
    }


def _chart(result: SweepResult, values: pd.DataFrame) -> vega.Spec:
    shown = values[values["unbeaten"]]
    least = vega.fence(shown["accuracy"].tolist(), -1)
    scale = vega.accuracies_shown(shown["accuracy"][shown["accuracy"] >= least].tolist())
    y = vega.axis("accuracy", "Validation accuracy, the judging half", scale=scale)
    x = vega.axis("cost", COSTS[COST], scale={"domain": [0, 1.03 * values["cost"].max()]})
    own_colour, own_shape = method_marks(["cascade"], CSS)["cascade"]
    methods = {**method_marks(result.methods, CSS), CASCADE: (own_colour, own_shape)}
    colour, shape = (
        {
            "field": "method",
            "type": "nominal",
            "scale": {"domain": list(methods), "range": [mark[place] for mark in methods.values()]},
            "legend": None,
        }
        for place in (0, 1)
    )
    told = vega.tooltip(
        networks="networks, in turn",
        method="method",
        accuracy="accuracy",
        work="multiplications",
        reached="reached by",
        beside="best alone at no more",
        random="decisions at random",
    )
    marks = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": told}
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolSize": 400}
    legend |= {"symbolStrokeColor": CSS.ink, "symbolStrokeWidth": 2}
    dashes = {"domain": [ALONE, CASCADE], "range": [[4, 3], [1, 0]]}
    kind = {"field": "kind", "type": "nominal", "scale": dashes, "legend": legend}
    steps = {"x": x, "y": y, "strokeDash": kind, "detail": {"field": "of", "type": "nominal"}}
    inside = f"datum.accuracy >= {scale['domain'][0]}"
    layers = [
        vega.layer(
            "point", marks, keep=f"!datum.unbeaten && {inside}", opacity=0.4, size=30, filled=True,
        ),
        *vega.at_the_edge(x, y, marks),
        *(
            vega.layer(
                "line", steps, keep=f"datum.unbeaten && datum.kind === '{name}'", clip=True,
                interpolate="step-after", strokeWidth=2, color=line,
            )
            for name, line in ((ALONE, CSS.muted), (CASCADE, own_colour))
        ),
        vega.layer(
            "point", marks, keep=f"datum.unbeaten && {inside}", opacity=1, size=80, filled=True,
            stroke=CSS.surface, strokeWidth=1,
        ),
    ]  # fmt: skip
    what = "Accuracy of cascades of the sweep's own networks, and of these alone."
    return vega.chart(values, layers, what, height=340)
