"""Order of the channels of every pruned conv: the most important first.

A prefix then holds the channels that matter most. What the network computes stays the same.
Importance is the L1 norm of a channel's filter (Li et al. 2016) as its batch norm scales it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rnp.structure.channel_flow import ChannelFlow, PrunedConv


@torch.no_grad()
def order_channels(network: nn.Module, flow: ChannelFlow) -> None:
    """Reorders the channels of the convs that `flow` found in `network`, in place."""
    for conv in flow.convs:
        order = importance(network, conv).argsort(descending=True, stable=True)
        network.load_state_dict(with_channels(network.state_dict(), conv, order))


def with_channels(
    tensors: Mapping[str, Tensor], conv: PrunedConv, channels: Tensor
) -> dict[str, Tensor]:
    """A network's tensors with these channels of a conv, in the given order and no others.

    That changes the conv, the layers with weights for each channel that they pass, and the readers.

    Args:
        tensors: a state dict.
        channels: (n,) int64.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        layer, _, _ = name.rpartition(".")
        if layer in (conv.name, *conv.per_channel) and tensor.ndim > 0:  # a norm counts in a scalar
            found[name] = tensor[channels]
    for reader, per_channel in conv.readers.items():
        by_channel = tensors[f"{reader}.weight"].unflatten(1, (conv.channels, per_channel))
        found[f"{reader}.weight"] = by_channel[:, channels].flatten(1, 2)
    return found


@torch.no_grad()
def importance(network: nn.Module, conv: PrunedConv) -> Tensor:
    """(channels,): sums of a filter's absolute weights, as the batch norm after it scales them."""
    module: Any = network.get_submodule(conv.name)
    norms = module.weight.abs().sum(dim=(1, 2, 3))
    if conv.norm is not None:
        norm: Any = network.get_submodule(conv.norm)
        if norm.affine:
            norms = norms * norm.weight.abs()
        if norm.running_var is not None:
            norms = norms / (norm.running_var + norm.eps).sqrt()
    return norms
