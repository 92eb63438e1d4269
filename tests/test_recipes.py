"""What the recipes of `benchmarks.recipes` change of a training."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.recipes import (
    AVERAGE_POWER,
    LateAverage,
    Smaller,
    alternating_flips,
    mirrored_borders,
)
from testbed.augmentation import Augmentation


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (64, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return drawn.contiguous(memory_format=torch.channels_last)


def test_an_image_is_mirrored_in_every_second_epoch(pixels: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, third = (
        alternating_flips(pixels, Augmentation(0, flip=True), generator, passed)
        for passed in (0.5, 1.0, 2.9)
    )
    assert torch.equal(first.flip(-1), second)
    assert torch.equal(first, third)
    as_it_was = (first == pixels).flatten(1).all(dim=1)
    assert 0.3 < as_it_was.double().mean() < 0.7


def test_a_shift_brings_in_the_image_mirrored_at_its_border(pixels: Tensor) -> None:
    augmentation = Augmentation(2, flip=False)
    generator = torch.Generator().manual_seed(0)
    shifted = mirrored_borders(pixels, augmentation, generator, 0.0)
    wide = nn.functional.pad(pixels.float(), [2] * 4, mode="reflect").byte()
    places = set()
    for image, around in zip(shifted, wide, strict=True):
        found = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(image, around[:, down : down + 6, right : right + 6])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 15


def test_the_average_of_weights_counts_late_steps_most() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = LateAverage(network)
    values = [3.0, -1.0, 4.0, 1.5, -2.0]
    for value in values:
        nn.init.constant_(network.weight, value)
        average.step()
    average.use()
    shares = [math.perm(step + AVERAGE_POWER - 1, AVERAGE_POWER) for step in range(1, 6)]
    expected = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    assert network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_only_training_sees_smaller_images() -> None:
    sides: list[int] = []

    class Noting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sides.append(images.shape[-1])
            return images

    shown = Smaller(Noting())
    for progress in (0.0, 0.5, 0.9):
        shown.progress = progress
        shown.train()(torch.zeros(1, 3, 32, 32))
    shown.progress = 0.0
    shown.eval()(torch.zeros(1, 3, 32, 32))
    assert sides == [24, 28, 32, 32]
