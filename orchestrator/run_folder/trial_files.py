"""What a trial leaves in the run folder beside its row and its network.

`reports/TRIAL_ID.jsonl` has what it reported, a line each: epochs, rounds, layers.
`images/TRIAL_ID.png` has, of a network that decides per image, the validation images that it spent
least on and, below, those it spent most on; what each one cost is in `images/TRIAL_ID.csv`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from orchestrator.run_folder.trials_table import write_atomically
from testbed.data import Images

SHOWN = 10  # cheapest images, and as many dearest


def write_reports(path: Path, reports: Sequence[Mapping[str, float]]) -> None:
    """Writes what a trial reported, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(dict(each)) + "\n" for each in reports).encode())


def read_reports(path: Path) -> list[dict[str, float]]:
    """What a trial reported; nothing where it left no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def extremes(multiplications: Sequence[float]) -> tuple[list[int], list[int]]:
    """The places of the cheapest images, the cheapest first, and of the dearest, the dearest first.

    Of equals the first come first.
    """
    costs = np.asarray(multiplications)
    cheapest, dearest = np.argsort(costs, kind="stable"), np.argsort(-costs, kind="stable")
    return cheapest[:SHOWN].tolist(), dearest[:SHOWN].tolist()


def write_extremes(path: Path, images: Images, multiplications: Sequence[float]) -> None:
    """Writes the cheapest and the dearest images as one picture of two rows.

    Args:
        images: of one channel or three; others are not drawn.
    """
    if images.shape[1] not in (1, 3):
        return
    rows = [images.select(torch.tensor(places)).pixels for places in extremes(multiplications)]
    picture = np.vstack([np.hstack([*row.permute(0, 2, 3, 1).numpy()]) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze()).save(path, format="PNG")


def read_extremes(path: Path, n: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """The cheapest and the dearest images of a picture that `write_extremes` wrote.

    Args:
        n: how many images the network was measured on.
    """
    with Image.open(path) as picture:
        halves = np.split(np.asarray(picture), 2)
    cheapest, dearest = (np.split(half, min(n, SHOWN), axis=1) for half in halves)
    return [*map(Image.fromarray, cheapest)], [*map(Image.fromarray, dearest)]
