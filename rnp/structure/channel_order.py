"""Puts the channels of every pruned conv in order, the most important first.

A prefix then holds the channels that matter most. What the network computes stays the same.
Importance is the L1 norm of a channel's filter (Li et al. 2016) as its batch norm scales it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rnp.structure.channel_flow import ChannelFlow, PrunedConv


@torch.no_grad()
def order_channels(network: nn.Module, flow: ChannelFlow) -> None:
    """Reorders the channels of the convs that `flow` found in `network`, in place."""
    for conv in flow.convs:
        order = importance(network, conv).argsort(descending=True, stable=True)
        _reorder(network.get_submodule(conv.name), order)
        for norm in conv.norms:
            _reorder(network.get_submodule(norm), order)
        for reader, per_channel in conv.readers.items():
            weight: Tensor = network.get_submodule(reader).weight.data  # type: ignore[assignment]
            by_channel = weight.unflatten(1, (conv.channels, per_channel))
            weight.copy_(by_channel[:, order].flatten(1, 2))


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


def _reorder(module: Any, order: Tensor) -> None:
    """Puts the outputs of a conv, or the channels of a batch norm, in the given order."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and tensor.ndim > 0:  # batch norm counts its batches in a scalar
            tensor.copy_(tensor[order])
