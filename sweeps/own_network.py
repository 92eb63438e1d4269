"""A pretrained network and a folder of images as a user brings them, for `own_network.yaml`.

    python -m sweeps.own_network        # draws the images, trains the network: some 20 seconds
    python -m orchestrator.sweep sweeps/own_network.yaml

Nothing of it is registered: any function that gives an `nn.Module` is a backbone, any folder with a
sub-folder of images per class a data set.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

IMAGES = Path(__file__).parents[1] / "data" / "shapes"
WEIGHTS = IMAGES.with_suffix(".safetensors")


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


def draw(folder: Path) -> None:
    """Writes `shapes` to a folder, whole or not at all: one sub-folder of images per class."""
    drawn = shapes(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".shapes.", dir=folder.parent))
    for label, name in enumerate(drawn["class_names"]):
        (unfinished / name).mkdir()
        of_class = [drawn[f"x_{half}"][drawn[f"y_{half}"] == label] for half in ("train", "test")]
        for number, image in enumerate(np.concatenate(of_class)[..., 0]):
            Image.fromarray(image).save(unfinished / name / f"{number:03d}.png")
    unfinished.chmod(0o755)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)


def main() -> None:
    """Draws the images and trains the network on them, where they are not there yet."""
    from safetensors.torch import save_file

    from testbed import Training, load_splits, train
    from testbed.data import DataOptions

    if not IMAGES.exists():
        draw(IMAGES)
    if WEIGHTS.exists():
        return
    options = DataOptions(name=str(IMAGES), validation_share=0.25)  # as in the sweep file
    data = load_splits(options, IMAGES.parent, seed=0)
    torch.manual_seed(0)
    model = network(data.input_shape, data.n_classes)
    training = Training(epochs=15, batch_size=32, learning_rate=0.05)
    train(model, data, training, seed=0, device=torch.device("cpu"))
    unfinished = WEIGHTS.with_name(f".{os.getpid()}.safetensors")
    save_file(model.state_dict(), unfinished)
    unfinished.rename(WEIGHTS)  # whole, whoever else is about to write it


if __name__ == "__main__":
    main()
