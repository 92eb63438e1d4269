"""A network and a data set as a user brings them, for `own_network.yaml`: nothing is registered.

    python -m orchestrator.sweep sweeps/own_network.yaml

Any function that gives an `nn.Module` is a backbone, any that gives four arrays a data set.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TwoPaths(nn.Module):
    """A stem, two paths whose channels are joined, a block with a sum around it, a classifier."""

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.fine = nn.Conv2d(width, width, 3, padding=1)
        self.coarse = nn.Conv2d(width, width, 5, padding=2)
        self.join = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.inner = nn.Conv2d(2 * width, 3 * width, 3, padding=1)
        self.outer = nn.Conv2d(3 * width, 2 * width, 3, padding=1)
        self.classifier = nn.Linear(2 * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        x = torch.cat([self.fine(x).relu(), self.coarse(x).relu()], dim=1)
        x = self.norm(self.join(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def network(input_shape: tuple[int, int, int], n_classes: int, width: int = 8) -> nn.Module:
    """Called for every trial. `input_shape` is (channels, height, width); what else there is, here
    `width`, can be set, gridded or searched in the sweep file."""
    return TwoPaths(input_shape[0], n_classes, width)


def shapes(root: Path) -> dict[str, Any]:
    """Noisy discs, squares and crosses, 16 x 16 grey pixels. `root` is the folder of the data sets;
    these are drawn, so nothing is read from it."""
    n, random = 1200, np.random.default_rng(0)
    labels = np.arange(n) % 3
    rows, columns = np.mgrid[:16, :16]
    row, column = random.uniform(5, 10, (2, n, 1, 1))
    radius = random.uniform(3, 5, (n, 1, 1))
    down, across = np.abs(rows - row), np.abs(columns - column)
    disc = down**2 + across**2 < radius**2
    square = np.maximum(down, across) < 0.9 * radius
    cross = (np.maximum(down, across) < radius) & (np.minimum(down, across) < radius / 3)
    drawn = np.stack([disc, square, cross])[labels, np.arange(n)]
    pixels = 60 + 100 * drawn + random.normal(0, 30, drawn.shape)
    images = pixels.clip(0, 255).astype(np.uint8)[..., None]  # n x height x width x channels
    return {
        "x_train": images[:900],
        "y_train": labels[:900],
        "x_test": images[900:],
        "y_test": labels[900:],
        "class_names": ["disc", "square", "cross"],
    }
