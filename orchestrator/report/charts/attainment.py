"""Chart of the empirical attainment surfaces: what all, half and one of the seeds reach."""

from __future__ import annotations

from typing import Any

import pandas as pd

from orchestrator.palette import CSS
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.sweep_result import SweepResult


def attainment_chart(result: SweepResult, surfaces: pd.DataFrame) -> vega.Spec | None:
    """The accuracy at each cost that all, half and one of the seeds reach.

    Args:
        surfaces: of `attainment`, in one cell.
    """
    values: list[dict[str, Any]] = []
    for (method, count, n), corners in surfaces.groupby(
        ["method", "reached_by", "seeds"], sort=False
    ):
        by = "every seed" if count == n else "one seed" if count == 1 else "half of the seeds"
        steps = list(corners[["share", "val_accuracy"]].itertuples(index=False, name=None))
        steps.append((max(1.0, steps[-1][0]), steps[-1][1]))
        values += [
            {"method": method, "by": by, "share": share, "accuracy": each} for share, each in steps
        ]
    if not values:
        return None
    legend: vega.Spec = {"title": "reached by", "orient": "top", "symbolType": "stroke"}
    legend |= {"symbolStrokeColor": CSS.ink, "symbolStrokeWidth": 2, "symbolSize": 400}
    legend |= {"titleFontWeight": "normal", "titleColor": CSS.muted}
    dashes = {"every seed": [1, 0], "half of the seeds": [5, 3], "one seed": [1, 3]}
    encoding = {
        "x": vega.axis("share", "Share of the dense network's multiplications", "%"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "color": vega.method_scales(result, CSS)[0],
        "opacity": vega.faded(0.9),
        "strokeDash": {
            "field": "by",
            "type": "nominal",
            "scale": {"domain": list(dashes), "range": list(dashes.values())},
            "legend": legend,
        },
    }
    return vega.chart(
        values,
        [vega.layer("line", encoding, interpolate="step-after", strokeWidth=1.8)],
        "Accuracies that all, half and one of the seeds reach at each cost.",
    )
