"""Small sweeps of the digits, for tests."""

from pathlib import Path

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


METHODS = """
methods:
  dense: {}
  vanilla: {keep_ratio: {grid: [0.25, 0.5]}}
  l1_filter: {keep_ratio: 0.5}
  magnitude: {threshold: 1.0}
"""
