"""Images, networks and a budget that are small enough to prune in a fraction of a second."""

import copy
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.data import Images, Splits
from testbed.method import Run
from testbed.training import Training, train


def splits(n_train: int = 96, n_validation: int = 48, brighter: int = 90) -> Splits:
    """Three classes of noisy 8 x 8 images with 2 channels, each class bright in another corner."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n_train + n_validation) % 3
    pixels = torch.randint(0, 160, (len(labels), 2, 8, 8), generator=generator, dtype=torch.uint8)
    for label, (row, column) in enumerate(((0, 0), (0, 4), (4, 0))):
        pixels[labels == label, :, row : row + 4, column : column + 4] += brighter
    return Splits(
        train=Images(pixels[:n_train], labels[:n_train]),
        validation=Images(pixels[n_train:], labels[n_train:]),
        class_names=("a", "b", "c"),
        augmentation=Augmentation(crop=1, flip=False),
        mean=(0.4, 0.4),
        std=(0.2, 0.2),
    )


class Residual(nn.Module):
    """A stem, one block with a sum around it, a classifier; only the block's first conv is free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        outer = self.stem(images).relu()
        inner = self.conv2(self.norm1(self.conv1(outer)).relu())
        logits: Tensor = self.classifier((outer + inner).relu().mean(dim=(2, 3)))
        return logits


def network(kind: str = "conv") -> nn.Module:
    torch.manual_seed(3)
    if kind == "residual":
        return Residual()
    return build_backbone("conv", (2, 8, 8), 3, channels=(6, 8), hidden=10, dropout=0.1)


LEARNING = Training(epochs=20, batch_size=32, learning_rate=0.1, precision="float32")


@cache
def _trained(kind: str) -> nn.Module:
    model = network(kind)
    train(model, splits(), LEARNING, seed=0, device=torch.device("cpu"))
    return model


def trained(kind: str = "conv") -> nn.Module:
    """A network that is right about nearly all images of `splits`."""
    return copy.deepcopy(_trained(kind))


def run(
    fine_tuning_epochs: int = 3, seed: int = 0, reports: list[Mapping[str, float]] | None = None
) -> Run:
    """A run on the CPU; what is reported lands in `reports`."""
    settings = Training(epochs=2, batch_size=32, learning_rate=0.05, precision="float32")
    return Run(
        seed=seed,
        device=torch.device("cpu"),
        training=settings,
        fine_tuning=settings.model_copy(update={"epochs": fine_tuning_epochs}),
        report=(lambda values: None) if reports is None else reports.append,
    )
