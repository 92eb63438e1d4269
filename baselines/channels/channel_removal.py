"""Removal of channels from a network, with all that belongs to them.

Every removal is checked: the smaller network must give what the whole one gives with the same
channels at zero.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroups, smaller_network
from baselines.channels.dependency.removal import shared_copy
from testbed.data import Splits, normalise
from testbed.names import unknown


def example_images(data: Splits, device: torch.device) -> Tensor:
    """Two normalised training images (2, channels, height, width), to trace a network with."""
    return normalise(data.train[:2].pixels.to(device), data.mean, data.std)


def remove_channels(
    model: nn.Module,
    example: Tensor,
    groups: ChannelGroups,
    removed: Mapping[str, Sequence[int]],
) -> nn.Module:
    """A copy of `model` without the given channels of its groups.

    Args:
        model: is left unchanged.
        example: (n, channels, height, width), a valid input, on the model's device.
        groups: of `model` (see `channel_groups`).
        removed: name of a group -> indices of its channels that go.

    Raises:
        ValueError: if a group is not known, an index is wrong, a group would lose all its channels,
            or the smaller network fails or computes something else than the masked one. Names the
            group.
    """
    for name, channels in removed.items():
        _check(groups, name, channels)
    network = shared_copy(model)
    image = example[:1]
    smaller, failure = smaller_network(network, image, groups, removed)
    if smaller is not None and failure is None:
        return smaller
    alone = [
        name
        for name, channels in removed.items()
        if smaller_network(network, image, groups, {name: channels})[1]
    ]
    layers = ", ".join(map(repr, alone or removed))
    raise ValueError(
        f"Cannot remove channels of {layers}: the smaller network {failure}. Its code counts on "
        "their number: let it read the number from its input, or name the layers in keep."
    )


def _check(groups: ChannelGroups, name: str, channels: Sequence[int]) -> None:
    if name not in groups:
        reason = groups.kept_whole.get(name)
        if reason is not None:
            raise ValueError(f"Cannot remove channels of {name!r}: {reason}.")
        raise ValueError(unknown("group of channels", name, groups))
    n_channels = groups[name].channels
    if len(set(channels)) < len(channels) or not all(0 <= c < n_channels for c in channels):
        raise ValueError(
            f"Expected different channels of {name!r}, from 0 to {n_channels - 1}; "
            f"got {list(channels)}."
        )
    if len(channels) == n_channels:
        raise ValueError(f"Cannot remove all {n_channels} channels of {name!r}: one must stay.")
