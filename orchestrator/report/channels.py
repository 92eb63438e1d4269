"""How many channels of each layer the networks of trials kept."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from safetensors import safe_open

from orchestrator.report.sweep_result import SweepResult, natural
from orchestrator.report.table import Table

NETWORKS = "networks/{}.safetensors"


def channels_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How many channels each conv has in these trials' networks, of how many: 12 of 64.

    Left out are networks that hold all channels: those that zero weights or decide per image.
    """
    whole: dict[str, dict[str, int]] = {}
    for _, row in result.trials[result.trials["method"] == "dense"].iterrows():
        whole.setdefault(row["cell"], _channels(result.file(row, NETWORKS)))
    names = list(dict.fromkeys(name for each in whole.values() for name in each))
    records = []
    for _, row in trials.iterrows():
        dense, own = whole.get(row["cell"], {}), _channels(result.file(row, NETWORKS))
        if any(own[name] < n for name, n in dense.items() if name in own):
            of = {name: f"{own[name]} of {n}" for name, n in dense.items() if name in own}
            records.append(
                {
                    "cell": row["cell"] if len(result.cells) > 1 else "",
                    "method": row["method"],
                    "settings": result.settings(row),
                    **{name: of.get(name, "") for name in names},
                    "trial": row["trial_id"],
                }
            )
    return Table.of(records, words=("cell", "method", "settings", "trial"))


def _channels(network: Path) -> dict[str, int]:
    """The output channels of every conv in a network's file; none where there is no file."""
    if not network.exists():
        return {}
    with safe_open(network, framework="np") as file:
        names = sorted(file.keys(), key=natural)
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    return {
        name.removesuffix(".weight"): shape[0]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 4
    }
