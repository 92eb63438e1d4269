"""Networks given by their logits: the more they cost, the more they know."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from orchestrator.analysis.own_networks import OwnNetworks
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.run_folder.logits import write_logits
from tests.report_rows import DENSE, result_of, trial


def knowing(
    n: int, networks: int, classes: int = 4, seed: int = 0, blind: bool = False
) -> OwnNetworks:
    """
    Args:
        blind: whether the labels are drawn anew, so that the networks know nothing of them.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    logits = random.normal(size=(networks, n, classes))
    for number in range(networks):
        logits[number, np.arange(n), labels] += 0.5 + 2.0 * (number + 1) / networks
    if blind:
        labels = random.permutation(labels)
    costs = np.linspace(0.1, 1, networks) * DENSE
    rows = [
        trial("vanilla", (each.argmax(axis=1) == labels).mean(), cost / DENSE, trial_id=f"n{place}")
        for place, (each, cost) in enumerate(zip(logits, costs, strict=True))
    ]
    frame = pd.DataFrame(rows).assign(share=costs / DENSE)
    kept = [each.astype(np.float16).astype(np.float32) for each in logits]
    return OwnNetworks(frame, kept, labels, np.ones(networks, dtype=bool))


def write(folder: Path, networks: OwnNetworks, names: Sequence[str] = ()) -> None:
    """Their logits, as trials leave them."""
    for name, logits in zip(names or networks.rows["trial_id"], networks.logits, strict=True):
        path = folder / "logits" / f"{name}.safetensors"
        write_logits(path, torch.from_numpy(logits), torch.tensor(networks.labels))


def rows_of(networks: OwnNetworks, **columns: Any) -> list[dict[str, Any]]:
    """Of trials.csv."""
    own = networks.rows.drop(columns="share").assign(
        validation_images=len(networks.labels), **columns
    )
    return [{str(name): value for name, value in row.items()} for row in own.to_dict("records")]


def swept(
    folder: Path, networks: OwnNetworks, further: Sequence[dict[str, Any]] = ()
) -> SweepResult:
    """A sweep that ran these networks, and further ones without logits."""
    write(folder, networks)
    return result_of(folder, [*rows_of(networks), *further])
