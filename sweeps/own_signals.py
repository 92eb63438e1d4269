"""A network and a data set of signals, for `own_signals.yaml`: images of one row, (n, C, 1, L).

    python -m orchestrator.sweep sweeps/own_signals.yaml

Channel methods prune 1-D convs as they prune 2-D ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

LENGTH = 64  # samples of a signal


class SignalNet(nn.Module):
    """Three 1-D convs, the last two strided, and a classifier of their means."""

    def __init__(self, in_channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, width, 9, padding=4, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, 2 * width, 5, stride=2, padding=2, bias=False)
        self.norm2 = nn.BatchNorm1d(2 * width)
        self.conv3 = nn.Conv1d(2 * width, 2 * width, 5, stride=2, padding=2, bias=False)
        self.norm3 = nn.BatchNorm1d(2 * width)
        self.classifier = nn.Linear(2 * width, n_classes)

    def forward(self, signals: Tensor) -> Tensor:
        x = signals.squeeze(2)
        for conv, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ):
            x = norm(conv(x)).relu()
        logits: Tensor = self.classifier(x.mean(dim=2))
        return logits


def network(input_shape: tuple[int, int, int], n_classes: int, width: int = 16) -> nn.Module:
    """Called for every trial. `input_shape` is (channels, 1, length)."""
    return SignalNet(input_shape[0], n_classes, width)


def chirps(root: Path) -> dict[str, Any]:
    """Noisy tones that rise, fall or stay, two channels of 64 samples; drawn, not read."""
    n, random = 1200, np.random.default_rng(0)
    labels = np.arange(n) % 3
    time = np.linspace(0, 1, LENGTH)
    low, high = random.uniform(3, 6, (n, 1)), random.uniform(10, 14, (n, 1))
    middle = random.uniform(4, 12, (n, 1))
    start = np.stack([low, high, middle])[labels, np.arange(n)]
    end = np.stack([high, low, middle])[labels, np.arange(n)]
    phase = 2 * np.pi * (start * time + (end - start) * time**2 / 2 + random.uniform(0, 1, (n, 1)))
    waves = np.stack([np.sin(phase), np.cos(phase)], axis=-1)  # n x length x channels
    values = 128 + 60 * waves + random.normal(0, 30, waves.shape)
    signals = values.clip(0, 255).astype(np.uint8)[:, None]  # n x 1 x length x channels
    return {
        "x_train": signals[:900],
        "y_train": labels[:900],
        "x_test": signals[900:],
        "y_test": labels[900:],
        "class_names": ["rising", "falling", "steady"],
    }
