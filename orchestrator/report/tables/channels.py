"""How many channels of each layer the networks of trials kept."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from orchestrator.analysis.sweep_result import SweepResult, natural
from orchestrator.formatting import percent
from orchestrator.report.tables.images import mean_layers
from orchestrator.report.tables.table import Table, which_trial

FEW = 4
NETWORKS = "networks/{}.safetensors"


def channels_table(result: SweepResult, trials: pd.DataFrame) -> Table:
    """How many channels each conv has in these trials' networks, of how many: 12 of 64.

    A network that decides per image holds all of them; of it, what the mean validation image needed
    of the conv's multiplications: 37 %. Left out are other networks that hold all channels, since
    they zero weights in place.
    """
    dense: dict[str, tuple[dict[str, int], pd.Series]] = {}
    for _, row in result.trials[result.trials["method"] == "dense"].iterrows():
        if row["cell"] not in dense and (channels := _channels(result.file(row, NETWORKS))):
            dense[row["cell"]] = channels, mean_layers(result, row)
    names = dict.fromkeys(name for channels, _ in dense.values() for name in channels)
    records = []
    for _, row in trials.iterrows():
        channels, costs = dense.get(row["cell"], ({}, {}))
        if result.decides_per_image(row):
            spent = mean_layers(result, row)
            shown = not spent.empty
            kept = {
                name: percent(spent.get(name, 0.0) / cost)
                for name, cost in costs.items()
                if name in channels and shown
            }
        else:
            own = _channels(result.file(row, NETWORKS))
            kept = {name: f"{own[name]} of {n}" for name, n in channels.items() if name in own}
            shown = any(own[name] < channels[name] for name in kept)
        if shown:
            figures = {name: kept.get(name, "") for name in names}
            whole = {"kept whole": _few(row["kept_whole"])}
            trial = {"trial": row["trial_id"]}
            records.append({**which_trial(result, row), **figures, **whole, **trial})
    return Table.of(records)


def _few(layers: Any) -> str:
    """The first layers that kept all channels, of a JSON list, and how many there are beside."""
    names = json.loads(layers) if isinstance(layers, str) else []
    more = [f"and {len(names) - FEW} more"] if len(names) > FEW else []
    return ", ".join([*names[:FEW], *more])


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
