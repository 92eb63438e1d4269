"""Small sweeps of the digits, for tests, and a data set for those in processes of their own."""

from pathlib import Path

import numpy as np

SMALL = """
data: {name: digits, train_images: 300, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 2, batch_size: 64}
fine_tuning: {epochs: 1, learning_rate: 0.01}
"""


def write(folder: Path, name: str, rest: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(SMALL + rest)
    return path


def arguments(sweep: Path, folder: Path) -> list[str]:
    return [str(sweep), "--output", str(folder / "runs")]


ONE_WORKER = "resources: {cpus: 2, threads: 1}\n"
"""For a sweep on the Ray of two cores, where each worker takes seconds to start."""
METHODS = """
methods:
  dense: {}
  vanilla: {keep_ratio: {grid: [0.25, 0.5]}}
  l1_filter: {keep_ratio: 0.5}
  magnitude: {threshold: 1.0}
"""


def write_images(path: Path) -> None:
    """A data set that is read without scikit-learn, whose import takes a second."""
    images = np.random.default_rng(0).integers(0, 200, (240, 8, 8, 1), np.uint8)
    labels = np.arange(240) % 3
    for label, corner in enumerate((np.s_[:4, :4], np.s_[:4, 4:], np.s_[4:, :4])):
        images[(labels == label, *corner)] += 55
    np.savez(path, x_train=images, y_train=labels, x_test=images[:90], y_test=labels[:90])
