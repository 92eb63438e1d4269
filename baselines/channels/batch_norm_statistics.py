"""Batch-norm statistics of a network, estimated anew from training images.

Where channels are gone, the batch norms above still have the statistics of the whole network. A
smaller network that is judged with them looks far worse than it is, and the order of several is
wrong. Each is judged with statistics of its own instead.

Source: Li et al. 2020, "EagleEye: Fast sub-net evaluation for efficient neural network pruning",
ECCV, arXiv 2007.02491, section 3.2 (adaptive batch normalization).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testbed.data import Images, Splits, normalise
from testbed.prediction import evaluating, memory_format_for

BATCH_SIZE = 512
FEWEST, MOST = 64, 1500  # on CIFAR-10 32 cost 3 points of accuracy, 64 half a point at most
SHARE = 1 / 16  # of the images that judge; as each takes twice as long, an eighth of the time


def statistics_images(data: Splits, n_judging: int, seed: int) -> Images:
    """Training images to estimate statistics from, augmented as in training.

    Not augmented, images that a network knows by heart give other statistics than those that it
    was trained with, and a lower accuracy.

    Args:
        n_judging: how many images each smaller network is judged by; it takes few beside them.
        seed: which are drawn, and how they are augmented.
    """
    n = min(max(round(SHARE * n_judging), FEWEST), MOST, len(data.train))
    generator = torch.Generator().manual_seed(seed)
    drawn = data.train.drawn(n, generator)
    return Images(data.augmented(drawn, generator), drawn.labels)


def normalised_batches(
    network: nn.Module, images: Images, data: Splits, device: torch.device
) -> list[Tensor]:
    """All images as `network` takes them, in batches of one size, the last a little smaller.

    Batch norms weigh all batches alike, and fail on a last batch of one.
    """
    layout = memory_format_for(network, data, device)
    size = math.ceil(len(images) / math.ceil(len(images) / BATCH_SIZE))
    return [
        normalise(batch.pixels.to(device), data.mean, data.std, memory_format=layout)
        for batch in images.batches(size)
    ]


def estimated_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms that have running statistics."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> list[Any]:
    """Sets all running statistics to their means over batches; else nothing is in training mode.

    Args:
        network: its buffers are written to; its modules stay in their modes.
        batches: of normalised images, on the network's device.

    Returns:
        What the network gave for each batch, with the statistics of that batch.
    """
    norms = estimated_norms(network)
    momenta = [norm.momentum for norm in norms]
    with evaluating(network):
        for norm in norms:
            start_estimation(norm)
        outputs = [network(batch) for batch in batches]
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return outputs


def start_estimation(norm: _BatchNorm) -> None:
    """From now on `norm` takes the mean of the statistics of the batches that it meets."""
    norm.reset_running_stats()
    norm.momentum = None
    norm.train()
