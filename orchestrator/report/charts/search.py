"""Chart of a search: the hypervolume over the tries of each method, beside random search."""

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report.charts import vega_lite as vega


def search_chart(result: SweepResult, progress: pd.DataFrame) -> vega.Spec:
    """Solid: the search; dashed: random search of as many tries. Each point is a try.

    Args:
        progress: of `search_progress`, the studies of one cell.
    """
    encoding = {
        "x": vega.axis("number", "Tries of a study"),
        "y": vega.axis("hypervolume", "Hypervolume so far"),
        "detail": {"field": "study"},
        "tooltip": vega.tooltip("trial_id", "settings", "method"),
        "color": vega.method_scales(result)[0],
    }
    by_chance = encoding | {"y": vega.axis("random", "Hypervolume so far")}
    layers = [
        vega.layer("line", by_chance, opacity=0.7, strokeDash=[4, 3], strokeWidth=1.5),
        vega.layer("line", encoding, opacity=0.9, point={"size": 30}, strokeWidth=1.8),
    ]
    return vega.chart(progress, layers, "Hypervolume over the tries of each study.")
