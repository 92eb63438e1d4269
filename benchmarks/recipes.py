"""What each part of a training recipe gains, on validation images of CIFAR-10.

    python -m benchmarks.recipes --data FOLDER [--of NETWORK] [--epochs N ...] [--seeds N ...]

Every network is trained on 40,000 images and judged on the other 10,000 training images, once by
the recipe of `sweeps/cifar_frontier.yaml` and once with each part changed. `recipes.csv` has a row
for each training; those that are there are not run again, so that several commands may fill it one
after the other. `recipes.md`: the mean gains, paired by seed, and the time of an epoch.

The parts, from fast public recipes of CIFAR-10:

- label smoothing;
- alternating flips: an image is mirrored in every second epoch, not by chance (Jordan 2024, arXiv
  2404.00498);
- mirrored borders: what a shift brings in is the image mirrored, not black (the same);
- an average of late weights: of all steps, the weight of step t growing as t^8, and of the
  batch-norm statistics alike (Shamir and Zhang 2013, arXiv 1212.1824, section 4);
- smaller images first: of 3/4 of the side for the first third of the epochs, then of 7/8 for
  another, for networks that take images of any size.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from testbed.augmentation import Augmentation, augment
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Images, Splits, load_splits
from testbed.machine import set_threads, tune_malloc
from testbed.prediction import evaluate
from testbed.training import Training, train

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "11.2 M": {
        "name": "conv", "channels": [32, 64, 96, 128], "pool_after": [1, 2, 3, 4], "hidden": 512,
    },
    "resnet20": {"name": "resnet20"},
}  # fmt: skip
ANY_SIZE = {"resnet20"}
AVERAGE_POWER = 8
COLUMNS = ("network", "recipe", "epochs", "seed", "accuracy", "seconds_an_epoch")
PLAIN = "plain"

Draw = Callable[[Tensor, Augmentation, torch.Generator, float], Tensor]
"""Augmented pixels, of (n, C, H, W) uint8 ones and the epochs that have passed."""


def by_chance(
    pixels: Tensor, augmentation: Augmentation, generator: torch.Generator, passed: float
) -> Tensor:
    return augment(pixels, augmentation, generator)


def alternating_flips(
    pixels: Tensor, augmentation: Augmentation, generator: torch.Generator, passed: float
) -> Tensor:
    """Each image is mirrored in the even or in the odd epochs, which a hash of it decides."""
    odd = pixels.sum(dim=(1, 2, 3)) % 2 == math.floor(passed) % 2
    pixels = torch.where(odd[:, None, None, None], pixels.flip(-1), pixels)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return augment(pixels, Augmentation(augmentation.crop, flip=False), generator)


def mirrored_borders(
    pixels: Tensor, augmentation: Augmentation, generator: torch.Generator, passed: float
) -> Tensor:
    crop, (height, width) = augmentation.crop, pixels.shape[-2:]
    flipped = augment(pixels, Augmentation(0, augmentation.flip), generator)
    wide = F.pad(flipped.float(), [crop] * 4, mode="reflect").to(torch.uint8)
    wide = wide.contiguous(memory_format=torch.channels_last)
    shifted = augment(wide, Augmentation(crop, flip=False), generator)
    return shifted[..., crop : crop + height, crop : crop + width]


@dataclass(frozen=True)
class Drawn(Splits):
    """A data set whose images are augmented by a recipe's own draw."""

    draw: Draw = by_chance
    seen: list[int] = field(default_factory=list)

    def augmented(self, images: Images, generator: torch.Generator) -> Tensor:
        passed = sum(self.seen) / len(self.train)
        self.seen.append(len(images))
        return self.draw(images.pixels, self.augmentation, generator, passed)


class Smaller(nn.Module):
    """A network that is shown small images early in its training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.progress = 0.0

    def forward(self, images: Tensor) -> Tensor:
        share = 1.0
        if self.training:
            share = 0.75 if self.progress < 1 / 3 else 0.875 if self.progress < 2 / 3 else 1.0
        if share < 1:
            images = F.interpolate(
                images, scale_factor=share, mode="bilinear", antialias=True, align_corners=False
            ).contiguous(memory_format=torch.channels_last)
        outputs: Tensor = self.network(images)
        return outputs


class LateAverage:
    """Weights and batch-norm statistics, averaged over the steps, the late ones most."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._steps = 0
        self._means = {name: value.clone() for name, value in self._values().items()}

    def _values(self) -> dict[str, Tensor]:
        state = self._network.state_dict()
        return {name: value for name, value in state.items() if value.is_floating_point()}

    @torch.no_grad()
    def step(self) -> None:
        self._steps += 1
        share = (AVERAGE_POWER + 1) / (AVERAGE_POWER + self._steps)
        for name, value in self._values().items():
            self._means[name].lerp_(value, share)

    def use(self) -> None:
        self._network.load_state_dict(self._means, strict=False)


@dataclass(frozen=True)
class Recipe:
    """What is changed of the plain one."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: Draw = by_chance
    average: bool = False
    smaller: bool = False


def _both(
    pixels: Tensor, augmentation: Augmentation, generator: torch.Generator, passed: float
) -> Tensor:
    flipped = alternating_flips(pixels, Augmentation(0, augmentation.flip), generator, passed)
    return mirrored_borders(flipped, Augmentation(augmentation.crop, False), generator, passed)


RECIPES = {
    PLAIN: Recipe(),
    "label smoothing of 0.1": Recipe({"label_smoothing": 0.1}),
    "label smoothing of 0.2": Recipe({"label_smoothing": 0.2}),
    "alternating flips": Recipe(draw=alternating_flips),
    "mirrored borders": Recipe(draw=mirrored_borders),
    "average of late weights": Recipe(average=True),
    "cosine schedule": Recipe({"schedule": "cosine"}),
    "weight decay of 0.001": Recipe({"weight_decay": 1e-3}),
    "smaller images first": Recipe(smaller=True),
    "both borders and flips, smoothing of 0.1": Recipe({"label_smoothing": 0.1}, draw=_both),
}


def trained(network: str, recipe: Recipe, epochs: int, seed: int, data: Splits) -> dict[str, float]:
    """Validation accuracy, and the CPU seconds of an epoch."""
    options = dict(NETWORKS[network])
    torch.manual_seed(seed)
    model = build_backbone(options.pop("name"), data.input_shape, data.n_classes, **options)
    drawn = Drawn(
        **{each.name: getattr(data, each.name) for each in fields(Splits)}, draw=recipe.draw
    )
    average = LateAverage(model) if recipe.average else None
    shown = Smaller(model) if recipe.smaller else model

    def each_step(_: nn.Module, progress: float) -> Tensor:
        """Adds nothing to the loss."""
        if isinstance(shown, Smaller):
            shown.progress = progress
        if average:
            average.step()
        return torch.zeros(())

    settings = Training(epochs=epochs, batch_size=128, learning_rate=0.2, **recipe.settings)
    begun = time.process_time()
    train(shown, drawn, settings, seed=seed, device=CPU, penalty=each_step)
    seconds = (time.process_time() - begun) / epochs
    if average:
        average.step()
        average.use()
    accuracy = evaluate(model.eval(), data.validation, data, device=CPU)
    return {"accuracy": accuracy, "seconds_an_epoch": seconds}


def table(frame: pd.DataFrame) -> str:
    """Mean gains over the plain recipe, paired by seed."""
    lines = ["# What each part of a recipe gains", ""]
    for (network, epochs), part in frame.groupby(["network", "epochs"]):
        accuracies = part.pivot_table(index="seed", columns="recipe", values="accuracy")
        seconds = part.groupby("recipe")["seconds_an_epoch"].median()
        if PLAIN not in accuracies:
            continue
        lines += [
            f"{network}, {epochs} epochs. Plain: {accuracies[PLAIN].mean():.4f} of 10,000 "
            "validation images.",
            "",
            "| recipe | gain, points | of each seed | time of an epoch |",
            "| --- | ---: | --- | ---: |",
        ]
        gains = 100 * accuracies.sub(accuracies[PLAIN], axis=0).drop(columns=PLAIN)
        for name in gains.mean().sort_values(ascending=False).index:
            each = gains[name].dropna()
            seeds = ", ".join(f"{gain:+.2f}" for gain in each)
            ratio = seconds[name] / seconds[PLAIN]
            lines.append(f"| {name} | {each.mean():+.2f} | {seeds} | {ratio:.2f} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--of", choices=NETWORKS, default="11.2 M")
    parser.add_argument("--epochs", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="all that fit, by default")
    parser.add_argument("--output", type=Path, default=Path("results/recipes"))
    options = parser.parse_args(arguments)
    fitting = [name for name in RECIPES if options.of in ANY_SIZE or not RECIPES[name].smaller]
    if unfit := set(options.recipes or ()) - set(fitting):
        parser.error(f"{options.of} takes images of one size alone: leave {min(unfit)!r} out")
    set_threads(1)
    tune_malloc()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "recipes.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    for seed in options.seeds:
        data = load_splits(DataOptions(name="cifar10", validation_share=0.2), options.data, seed)
        for epochs in options.epochs:
            for name in options.recipes or fitting:
                key = [options.of, name, epochs, seed]
                done = pd.read_csv(path)[list(COLUMNS[:4])].values.tolist()
                if key in done:
                    continue
                found = trained(options.of, RECIPES[name], epochs, seed, data)
                with path.open("a", newline="") as file:
                    csv.writer(file).writerow([*key, *found.values()])
                print(*key, *found.values(), flush=True)
                (options.output / "recipes.md").write_text(table(pd.read_csv(path)))


if __name__ == "__main__":
    main()
