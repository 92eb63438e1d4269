"""What is sampled of the layers that read channels: all images, in every precision."""

import numpy as np
import pytest
import tiny
import torch

from baselines.channels.channel_groups import channel_groups
from baselines.channels.contributions import IMAGES_AT_ONCE, Sampler
from testbed.machine import Precision

CPU = torch.device("cpu")


def sampler(precision: Precision, images: int) -> Sampler:
    data = tiny.splits(n_train=3 * IMAGES_AT_ONCE)
    return Sampler(data, CPU, precision, torch.channels_last, images, positions=4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_batch_of_images_is_caught(precision: Precision) -> None:
    network = tiny.network("conv")
    sampling = sampler(precision, images=2 * IMAGES_AT_ONCE + 5)
    caught = []
    images = sampling.drawn(torch.Generator().manual_seed(0))
    weight = [name for name, p in network.named_parameters() if p.ndim == 4][-1]
    sampling.catch(network, [weight], images, lambda *taken: caught.append(len(taken[1].maps)))
    assert caught == [IMAGES_AT_ONCE, IMAGES_AT_ONCE, 5]


def test_more_images_make_larger_sums_in_bfloat16_as_in_float32() -> None:
    network = tiny.network("conv")
    groups = channel_groups(network, torch.zeros(1, *tiny.splits().input_shape))
    group = groups[next(iter(groups))]
    sums: dict[tuple[Precision, int], float] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        for images in (IMAGES_AT_ONCE, 3 * IMAGES_AT_ONCE):
            sampling = sampler(precision, images)
            (reader,) = sampling.readers(network, group, torch.Generator().manual_seed(0))
            sums[precision, images] = np.trace(reader.gram)
    assert sums["bfloat16", 3 * IMAGES_AT_ONCE] > 2 * sums["bfloat16", IMAGES_AT_ONCE]
    for images in (IMAGES_AT_ONCE, 3 * IMAGES_AT_ONCE):
        assert sums["bfloat16", images] == pytest.approx(sums["float32", images], rel=0.02)
