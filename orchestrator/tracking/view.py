"""The "Frontier" view that every sweep's experiment has in MLflow's UI.

MLflow keeps a saved view as a tag of the experiment: JSON of its name, its times and the page's
state, itself JSON, deflated. Written here as the UI of MLflow 3.17 does, with what differs from
the UI's defaults; what it does not know it would ignore. The menu "Views" opens its table, the
address that `address` gives its chart. A page of several experiments opens on the view of the first
if its address has the same query.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

NAME = "Frontier"
TAG = "mlflow.sharedViewState.frontier"
RUN_COLOUR = "mlflow.runColor"  # a tag of a run: its colour in every chart

_DEFLATED = "deflate;"
_COLUMNS = (
    "params.`method`",
    "metrics.`val_accuracy`",
    "metrics.`share`",
    "metrics.`confirmed_accuracy`",
    "metrics.`latency_ratio`",
    "tags.`sweep`",
    "tags.`phase`",
    "tags.`status`",
)
_SECTION = {
    "uuid": "frontier",
    "name": NAME,
    "display": True,
    "isReordered": True,
    "deleted": False,
    "isGenerated": False,
    "columns": 1,
    "cardHeight": 480,
}
_CHARTS = [  # shares of the dense network's multiplications, so that sweeps compare
    {
        "uuid": f"frontier-{x}",
        "type": "SCATTER",
        "metricSectionId": _SECTION["uuid"],
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
    for x, y in (("share", "val_accuracy"), ("confirmed_share", "confirmed_accuracy"))
]
STATE: Mapping[str, Any] = {
    "orderByKey": "metrics.`val_accuracy`",  # the UI draws the runs that its table has loaded
    "orderByAsc": False,
    "selectedColumns": _COLUMNS,
    "runsHiddenMode": "SHOW_ALL",
    "compareRunSections": [_SECTION],
    "compareRunCharts": _CHARTS,
    "isAccordionReordered": True,  # or the UI would put its own sections before this one
}


def address(pages: str, experiment_id: str) -> str:
    """Where a browser finds the view's chart; `pages` is the address of MLflow's UI."""
    query = "compareRunsMode=CHART&viewStateShareKey=frontier"
    return f"{pages.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def view_to_write(written: str | None) -> str | None:
    """The tag's value, or None where it is right as it is.

    Args:
        written: the value that the experiment has, if any.
    """
    state = _DEFLATED + base64.b64encode(zlib.compress(json.dumps(STATE).encode())).decode()
    try:
        before = json.loads(written or "{}")
    except ValueError:  # somebody has edited it
        before = {}
    if before.get("name") == NAME and before.get("state") == state:
        return None
    now = int(1000 * time.time())
    created = before.get("createdAt", now)
    return json.dumps({"name": NAME, "createdAt": created, "updatedAt": now, "state": state})
