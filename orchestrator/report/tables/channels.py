"""How many channels of each layer the networks of trials kept."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from safetensors import safe_open

from orchestrator.formatting import percent
from orchestrator.report.sweep_result import SweepResult, natural
from orchestrator.report.tables.images import mean_layers
from orchestrator.report.tables.table import Table, which_trial

NETWORKS = "networks/{}.safetensors"


def channels_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How many channels each conv has in these trials' networks, of how many: 12 of 64.

    A network that decides per image holds all of them; of it, what the mean validation image needed
    of the conv's multiplications: 37 %. Left out are other networks that hold all channels, since
    they zero weights in place.
    """
    convs: dict[str, dict[str, int]] = {}
    costs: dict[str, dict[str, float]] = {}
    for _, row in result.trials[result.trials["method"] == "dense"].iterrows():
        if row["cell"] not in convs and (found := _channels(result.file(row, NETWORKS))):
            convs[row["cell"]], costs[row["cell"]] = found, mean_layers(result, row)
    names = list(dict.fromkeys(name for each in convs.values() for name in each))
    records = []
    for _, row in trials.iterrows():
        dense, whole = convs.get(row["cell"], {}), costs.get(row["cell"], {})
        own, computed = _channels(result.file(row, NETWORKS)), {}
        if result.decides_per_image(row):
            computed = mean_layers(result, row)
            kept = {
                name: percent(computed.get(name, 0.0) / cost)
                for name, cost in whole.items()
                if name in dense and computed
            }
        else:
            kept = {name: f"{own[name]} of {n}" for name, n in dense.items() if name in own}
        if computed or any(own[name] < n for name, n in dense.items() if name in own):
            records.append(
                {
                    **which_trial(result, row),
                    **{name: kept.get(name, "") for name in names},
                    "trial": row["trial_id"],
                }
            )
    return Table.of(records)


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
