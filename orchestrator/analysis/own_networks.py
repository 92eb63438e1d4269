"""A sweep's own networks, image by image: those of a cell and seed on the same images.

Half of these validation images choose, between networks and thresholds; the other half judges what
was chosen. Single networks and cascades of them are chosen and judged on the same halves.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.pareto import with_ratios
from orchestrator.analysis.sweep_result import OUT_OF, SweepResult
from orchestrator.run_folder.logits import read_logits
from testbed.stratified import draw

LOGITS = "logits/{}.safetensors"
STREAM = 3  # keeps this draw apart from others


@dataclass(frozen=True, eq=False)
class OwnNetworks:
    """Networks that were judged on the same images, the cheapest first."""

    rows: pd.DataFrame
    """Of trials.csv, of one cell and seed, with share; numbered from 0."""
    logits: list[NDArray[np.float32]]
    """(n, classes) of each network."""
    labels: NDArray[np.int64]
    fixed: NDArray[np.bool_]
    """(networks,): which spend the same on every image. Only these are combined."""

    @property
    def cell(self) -> str:
        return str(self.rows["cell"].iloc[0])

    @property
    def seed(self) -> int:
        return int(self.rows["seed"].iloc[0])

    @cached_property
    def costs(self) -> NDArray[np.float64]:
        """Multiplications of an image, (networks,)."""
        return self.rows["multiplications"].to_numpy(float)

    @property
    def dense_multiplications(self) -> float:
        return float(self.rows["dense_multiplications"].iloc[0])

    @cached_property
    def chooses(self) -> NDArray[np.bool_]:
        """(n,): the images that choose; the others judge."""
        return draw(self.labels, len(self.labels) // 2, np.random.default_rng(STREAM))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(networks, n): which images each network alone classifies right."""
        return np.stack([each.argmax(axis=1) == self.labels for each in self.logits])

    @cached_property
    def alone(self) -> pd.DataFrame:
        """The rows, with val_accuracy of the images that choose, and accuracy of those that judge.

        So `Limits.hold` has first what the former would take.
        """
        return self.rows.assign(
            val_accuracy=self.correct[:, self.chooses].mean(axis=1),
            accuracy=self.correct[:, ~self.chooses].mean(axis=1),
        )

    def place(self, trial_id: str) -> int:
        """A network's place."""
        return self.rows["trial_id"].tolist().index(trial_id)


def completed(result: SweepResult) -> pd.DataFrame:
    """The search's completed trials, with share."""
    return with_ratios(result.searched[result.searched["status"] == "completed"])


def own_networks(result: SweepResult) -> list[OwnNetworks]:
    """The networks of each cell, seed and run folder that left logits of the same images."""
    found = []
    rows = completed(result)
    keys = [name for name in ("cell", "seed", OUT_OF) if name in rows]
    for _, group in rows.groupby(keys, sort=False):
        group = group.sort_values("multiplications", kind="stable")
        same: dict[bytes, list[tuple[int, NDArray[np.float32], NDArray[np.int64]]]] = {}
        for place, (_, row) in enumerate(group.iterrows()):
            path: Path = result.file(row, LOGITS)
            if path.exists():
                logits, labels = read_logits(path)
                same.setdefault(labels.tobytes(), []).append((place, logits, labels))
        for members in same.values():
            places, logits_of, labels_of = zip(*members, strict=True)
            own = group.iloc[list(places)].reset_index(drop=True)
            fixed = [not result.decides_per_image(row) for _, row in own.iterrows()]
            found.append(OwnNetworks(own, list(logits_of), labels_of[0], np.array(fixed)))
    return sorted(found, key=lambda each: (result.cells.index(each.cell), each.seed))
