"""Layers that also run on a prefix of their channels, with weights that were prepared for it."""

from typing import Any

import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from testbed.prepared_layers import Prepared, statistics_of


class PrefixConv2d(nn.Conv2d):
    """A conv that also runs what was prepared for a prefix of its channels.

    That is run through the module, so that hooks see it and the counter of multiplications books
    it as this layer's.
    """

    def forward(self, input: Tensor, prepared: Prepared | None = None) -> Tensor:
        return super().forward(input) if prepared is None else prepared(input)


class PrefixLinear(nn.Linear):
    """A linear layer that also runs what was prepared for a prefix of its inputs."""

    def forward(self, input: Tensor, prepared: Prepared | None = None) -> Tensor:
        return super().forward(input) if prepared is None else prepared(input)


def allow_prefixes(network: nn.Module) -> None:
    """Makes the plain conv and linear layers of `network` ones that run on prefixes, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = PrefixConv2d
        elif type(module) is nn.Linear:
            module.__class__ = PrefixLinear


def prepare_per_channel(layer: Any, channels: int) -> Prepared:
    """A layer with weights for each channel, in evaluation mode on a prefix of its channels.

    Args:
        layer: a PReLU, an instance norm, or a batch norm with running statistics.
    """
    if isinstance(layer, nn.PReLU):
        slopes = layer.weight.detach()[:channels]
        return lambda images: F.prelu(images, slopes)
    mean, variance, weight, bias = statistics_of(layer, channels)
    if isinstance(layer, nn.InstanceNorm2d):
        of_images = mean is None
        return lambda images: F.instance_norm(
            images, mean, variance, weight, bias, use_input_stats=of_images, eps=layer.eps
        )
    return lambda images: F.batch_norm(images, mean, variance, weight, bias, eps=layer.eps)
