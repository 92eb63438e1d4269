"""Norms of the weights that make a group's channels, and of those that read them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from baselines.channels.channel_groups import NONE, ChannelGroup, Written
from baselines.channels.dependency.records import Labels
from baselines.channels.dependency.trace import network_tensors


def written_weight(network: nn.Module, written: Written) -> Tensor:
    """The weight of a layer that writes channels, (outputs, ...), on the CPU."""
    if written.parameter is not None:
        weight = network.get_parameter(written.parameter)
    else:
        weight = network.get_submodule(written.layer).weight  # type: ignore[assignment]
    return weight.detach().cpu().float().movedim(written.dim, 0)


def group_filters(network: nn.Module, group: ChannelGroup) -> Tensor:
    """The weights that make each channel of a group, (channels, features), on the CPU.

    Where several layers write the channels, each layer's weights have mean 0 and deviation 1.
    """
    found = []
    for written in group.writers:
        weight = written_weight(network, written).flatten(1)
        channels = torch.from_numpy(written.channels)
        order = channels.argsort(stable=True)[int((channels == NONE).sum()) :]
        found.append(weight[order].reshape(group.channels, -1))
    if len(found) == 1:
        return found[0]
    return torch.cat([standardised(filters) for filters in found], dim=1)


def standardised(filters: Tensor) -> Tensor:
    """Of mean 0 and deviation 1."""
    spread = filters.std().clamp(min=torch.finfo(filters.dtype).tiny)
    return (filters - filters.mean()) / spread


def l1_norms(
    network: nn.Module, group: ChannelGroup, *, writers: bool = True, readers: bool = False
) -> Tensor:
    """Sum of the absolute weights of each channel of a group, (channels,), on the CPU.

    Where several layers write the channels, each layer's sums are divided by their mean, so that
    none outweighs the others.

    Args:
        writers: whether the weights that write a channel count.
        readers: whether the weights that read a channel do; those that are known.

    Source: Fang et al. 2023, "DepGraph", CVPR, section 3.3.
    """
    found = [
        _by_channel(
            written_weight(network, written).flatten(1).abs().sum(dim=1), written.channels, group
        )
        for written in group.writers
        if writers
    ]
    if readers:
        found += [
            _by_channel(weight.flatten(1).abs().sum(dim=1), channels, group)
            for weight, channels in _read_weights(network, group)
        ]
    if len(found) == 1:
        return found[0]
    return sum(
        (norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny) for norms in found),
        torch.zeros(group.channels),
    )


def _by_channel(norms: Tensor, channels: Labels, group: ChannelGroup) -> Tensor:
    place = torch.from_numpy(channels)
    inside = place != NONE
    return torch.zeros(group.channels).index_add(0, place[inside], norms[inside])


def _read_weights(network: nn.Module, group: ChannelGroup) -> Iterable[tuple[Tensor, Labels]]:
    """The weights that read a group's channels, (inputs, ...), and the channel of each input."""
    tensors = network_tensors(network)
    for name, read in group.readers.items():
        weight, dim = tensors.get(read.parameter or ""), read.dim
        if weight is None:  # a computed one
            weight = getattr(network.get_submodule(name), "weight", None)
            if not isinstance(weight, Tensor) or len(read.channels) not in weight.shape[:2]:
                continue
            dim = 1 if weight.shape[1] == len(read.channels) else 0
        weight = weight.detach().cpu().float().movedim(dim, 0)
        if len(weight) <= len(read.channels):
            # A grouped conv reads the same channels at the same places of every group.
            yield weight, read.channels[: len(weight)]
