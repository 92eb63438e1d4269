"""Folders of a few tiny pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    """A picture of one colour; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(
    folder: Path, classes: Sequence[str] = ("cat", "dog"), n: int = 10, first: int = 0
) -> None:
    """`n` pictures of each class. Red is a picture's number, from `first` on; green its class."""
    numbers = iter(range(first, first + n * len(classes)))
    for label, name in enumerate(classes):
        for place in range(n):
            save(folder / name / f"{place:03}.png", (next(numbers), label, 200))


def photograph(path: Path, width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth colour picture without two equal regions; written and given back."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return picture
