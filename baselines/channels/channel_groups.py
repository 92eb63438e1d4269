"""Channel groups: what of a network can lose channels, and what goes with a channel.

A group is all the layers that write the same channels: two convs whose outputs are added, a conv
and the gate that scales it, the queries, keys and values of an attention. A channel of the group is
lost by all of them, and by all that reads it (Fang et al. 2023, "DepGraph", CVPR). Of an attention
whole heads are lost, of a grouped conv whole groups or the same places of every group: each counts
as one channel here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from baselines.channels.dependency.records import Labels, Trace
from baselines.channels.dependency.remaining import remaining
from baselines.channels.dependency.removal import Lost, masked, shared_copy, without
from baselines.channels.dependency.trace import plain_run, trace
from testbed.names import unknown

Scope = Annotated[
    Literal["inside_blocks", "all"],
    Field(description="Channels inside of residual blocks, or also those that blocks add to."),
]
Keep = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
    Field(description="Layers that keep their channels, by name or pattern, such as layer4.*"),
]
# Largest difference of a smaller network from the masked one, as a share of the largest output.
# Rounding, TF32 convs included, makes about 0.001; a wrongly taken channel far more.
TOLERANCE = 0.01
NONE = -1  # for an entry of a tensor that belongs to no channel of a group


Removed = Mapping[str, Sequence[int]]
"""Group -> the channels of it that go."""


@dataclass(frozen=True)
class Written:
    """What a layer's weight holds of the channels of a group."""

    layer: str
    parameter: str | None
    """The weight, where it is a parameter itself: else it is the layer's `weight`."""
    dim: int
    """Of the weight: its outputs lie along it."""
    channels: Labels
    """The channel of each of its outputs; `NONE` where that is another group's."""
    passes: bool
    """Whether it makes a channel of the same channel only, as depthwise and grouped convs do."""
    flat: bool
    """Whether it is a linear layer of one vector per image, as in a classifier's head."""


@dataclass(frozen=True)
class Read:
    """What a layer's weight reads of the channels of a group."""

    parameter: str | None
    """That the weight is or lies in; None where it is computed."""
    dim: int
    """Of the parameter: its inputs lie along it."""
    channels: Labels
    """The channel of each of its inputs; `NONE` where that is another group's."""
    calls: int
    """How often it reads them in a run."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers write."""

    name: str
    """The first layer that writes them."""
    channels: int
    writers: tuple[Written, ...]
    readers: Mapping[str, Read]
    """The layers that sum over the channels."""
    labels: Labels
    """Of each channel, in the trace."""
    summed: bool
    """Whether residual blocks add to the channels."""

    def inputs_by_channel(self, reader: str) -> list[list[int]]:
        """For every channel, the inputs of a reader that come from it."""
        found: list[list[int]] = [[] for _ in range(self.channels)]
        for place, channel in enumerate(self.readers[reader].channels.tolist()):
            if channel != NONE:
                found[channel].append(place)
        return found


class ChannelGroups(Mapping[str, ChannelGroup]):
    """The groups of a network that can lose channels, by name, in the order they first run."""

    def __init__(
        self, groups: Mapping[str, ChannelGroup], kept_whole: Mapping[str, str], found: Trace
    ) -> None:
        self._groups = dict(groups)
        self.kept_whole = dict(kept_whole)
        """Each layer that can lose no channel -> why."""
        self.trace = found

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def without(self, reasons: Mapping[str, str]) -> "ChannelGroups":
        """These groups but some, which stay whole for the given reasons."""
        kept_whole = dict(self.kept_whole)
        for name, reason in reasons.items():
            kept_whole |= {w.layer: reason for w in self[name].writers if not w.passes}
        left = {name: group for name, group in self.items() if name not in reasons}
        return ChannelGroups(left, kept_whole, self.trace)

    def lost(self, removed: Removed) -> Lost:
        """Whether the channel of each label of the trace is among those removed."""
        labels = self.trace.labels
        gone = np.zeros(len(labels), dtype=bool)
        for name, channels in removed.items():
            gone[self[name].labels[list(channels)]] = True
        found: Lost = gone[labels.channel(np.arange(len(labels)))]
        return found

    def after(self, removed: Removed) -> "ChannelGroups":
        """The groups of the network that these channels were removed from, of the same names."""
        found = remaining(self.trace, self.lost(removed))
        left = _groups(found)
        return ChannelGroups({name: left[name] for name in self}, self.kept_whole, found)


def channel_groups(
    model: nn.Module,
    example: Tensor,
    *,
    scope: Literal["inside_blocks", "all"] = "inside_blocks",
    keep: Sequence[str] = (),
    flat_linear: bool = False,
) -> ChannelGroups:
    """The groups of `model` that can lose channels.

    Half of every group's channels are taken out as a trial: groups that the network's code holds
    to a fixed number stay whole.

    Args:
        model: is left unchanged.
        example: (n, channels, ...), a valid input, on the model's device.
        scope: whether channels that residual blocks add to may go too.
        keep: names or patterns of layers; the groups that they write are spared.
        flat_linear: whether linear layers of one vector per image may lose outputs too.

    Raises:
        ValueError: if the network fails on `example`, `keep` fits no layer, or no group is left: it
            says what holds each layer.
    """
    network = shared_copy(model)
    _check_keep(network, keep)
    groups = _groups(trace(network, example[:1]))  # multiplications count for one image
    reasons = {}
    for name, group in groups.items():
        if any(_fits(writer.layer, pattern) for writer in group.writers for pattern in keep):
            reasons[name] = "it is named in keep"
        elif scope == "inside_blocks" and group.summed:
            reasons[name] = "residual blocks add to its channels (scope: all lets them go)"
        elif not flat_linear and all(w.flat for w in group.writers if not w.passes):
            reasons[name] = "it is a linear layer of a classifier's head"
    groups = groups.without(reasons)
    groups = groups.without(_failing(network, example[:1], groups))
    if not groups:
        raise ValueError(
            "No channel of this network can be removed. "
            f"{listed(groups.kept_whole) or 'It has no layer with channels'}."
        )
    return groups


def listed(reasons: Mapping[str, str], most: int = 6) -> str:
    """The first few layers with a reason each, and how many there are beside."""
    told = [f"{layer}: {reason}" for layer, reason in reasons.items()]
    more = [f"and {len(told) - most} layers more"] if len(told) > most else []
    return "; ".join([*told[:most], *more])


def _check_keep(network: nn.Module, keep: Sequence[str]) -> None:
    layers = [name for name, _ in network.named_modules() if name]
    for pattern in keep:
        if not any(_fits(layer, pattern) for layer in layers):
            raise ValueError(unknown("layer in keep", pattern, layers))


def _fits(layer: str, pattern: str) -> bool:
    """Whether a layer is named, lies in what is named, or fits the pattern."""
    return layer == pattern or layer.startswith(f"{pattern}.") or fnmatchcase(layer, pattern)


def _failing(network: nn.Module, image: Tensor, groups: ChannelGroups) -> dict[str, str]:
    """The groups that the network's code holds to their number of channels, and how.

    Found by removing every second channel of many groups, of halves of these where that fails.
    """

    def failure(names: list[str], blind: bool) -> str | None:
        removed = {name: range(1, groups[name].channels, 2) for name in names}
        return smaller_network(network, image, groups, removed, blind=blind)[1]

    def failing(names: list[str], blind: bool) -> dict[str, str]:
        reason = failure(names, blind)
        if reason is None:
            return {}
        if len(names) == 1:
            return {names[0]: f"the network without channels of it {reason}"}
        half = len(names) // 2
        return failing(names[:half], blind) | failing(names[half:], blind)

    if failure(list(groups), blind=False) is None:
        return {}
    by_shapes = failure([], blind=True) is None  # the network asks for no values
    found = failing(list(groups), blind=True) if by_shapes else {}
    return found | failing([name for name in groups if name not in found], blind=False)


def smaller_network(
    network: nn.Module,
    images: Tensor,
    groups: ChannelGroups,
    removed: Removed,
    *,
    blind: bool = False,
) -> tuple[nn.Module | None, str | None]:
    """The network without these channels, and what is wrong with it; None where nothing is.

    Args:
        network: of `shared_copy`; left unchanged.
        blind: whether only shapes are looked at, and not what it computes.
    """
    lost = groups.lost(removed)
    smaller = None
    try:
        smaller = without(network, groups.trace, lost, blind=blind)
        with plain_run(smaller):
            got = smaller(images.to("meta") if blind else images)
    except Exception as error:  # a user's forward may raise anything on smaller tensors
        return smaller, f"raises {type(error).__name__}: {error}"
    if blind:
        return smaller, None
    return smaller, difference(got, masked(network, groups.trace, lost, images))


def difference(got: Any, expected: Any) -> str | None:
    """How outputs differ that should be alike but for rounding; None where they do not.

    Raises:
        ValueError: if those expected are not finite, so that nothing can be compared.
    """
    pairs = zip(tree_leaves(got), tree_leaves(expected), strict=True)
    for some, other in pairs:
        if not isinstance(some, Tensor):
            continue
        if some.shape != other.shape:
            return f"gives outputs of shape {tuple(some.shape)} instead of {tuple(other.shape)}"
        if not other.isfinite().all():
            raise ValueError(
                "The network's outputs are not finite, so no channel can be told from another. "
                "Its training has diverged: lower the learning rate, or give other weights."
            )
        off = (some - other).abs().max().item()
        if not off <= TOLERANCE * other.abs().max().item():
            return f"gives outputs up to {off:.2g} off those with the channels at zero"
    return None


def _groups(found: Trace) -> ChannelGroups:
    labels = found.labels
    sets = _channels_by_group(found)
    sizes = [len(each) for each in sets]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    of_root = np.full(len(labels), NONE)
    for start, channels in zip(starts, sets, strict=False):
        of_root[channels] = np.arange(start, start + len(channels))
    of_label = of_root[labels.channel(np.arange(len(labels)))]

    def by_group(vector: Labels) -> dict[int, Labels]:
        """Group -> the group's channel of each entry."""
        channels = of_label[vector]
        group = np.searchsorted(starts, channels, side="right") - 1
        present = np.unique(group[channels != NONE])
        return {
            int(g): np.where((group == g) & (channels != NONE), channels - starts[g], NONE)
            for g in present
        }

    writers: list[list[Written]] = [[] for _ in sets]
    readers: list[dict[str, Read]] = [{} for _ in sets]
    kept_whole: dict[str, str] = {}
    for writer in found.writers:
        shared = by_group(writer.labels)
        layer = _layer(writer.module, writer.parameter)
        for g, channels in shared.items():
            known = {(w.layer, w.parameter) for w in writers[g]}
            if (layer, writer.parameter) not in known:
                written = Written(
                    layer, writer.parameter, writer.dim, channels, writer.passes, writer.flat
                )
                writers[g].append(written)
        if not shared and not writer.passes:
            reason = labels.reason(int(writer.labels[0])) or "nothing reads its channels"
            kept_whole[layer] = reason
    for reader in found.readers:
        parameter, dim = reader.weight or (None, 0)
        layer = _layer(reader.module, parameter)
        for g, channels in by_group(reader.labels).items():
            calls = readers[g][layer].calls if layer in readers[g] else 0
            readers[g][layer] = Read(parameter, dim, channels, calls + 1)
    added = np.unique(np.concatenate([[NONE], *(of_label[each] for each in found.summed)]))
    groups = {}
    for g, size in enumerate(sizes):
        name = next(w.layer for w in writers[g] if not w.passes)
        while name in groups:
            name += "'"
        summed = bool(((added >= starts[g]) & (added < starts[g + 1])).any())
        groups[name] = ChannelGroup(name, size, tuple(writers[g]), readers[g], sets[g], summed)
    return ChannelGroups(groups, kept_whole, found)


def _channels_by_group(found: Trace) -> list[Labels]:
    """The channels of each group, those of one writer together, in the order they run."""
    labels = found.labels
    read = np.zeros(len(labels), dtype=bool)
    for reader in found.readers:
        read[labels.channel(reader.labels)] = True
    group_of: dict[int, int] = {}
    members: list[list[int]] = []
    for writer in found.writers:
        channels = labels.channel(writer.labels)
        own = list(dict.fromkeys(channels[~labels.fixed(channels) & read[channels]].tolist()))
        if writer.passes or not own:
            continue
        known = sorted({group_of[channel] for channel in own if channel in group_of})
        place = known[0] if known else len(members)
        if not known:
            members.append([])
        for other in known[1:]:
            members[place] += members[other]
            members[other] = []
        members[place] += [channel for channel in own if channel not in group_of]
        group_of |= dict.fromkeys(members[place], place)
    return [part for each in members if each for part in _alike(np.array(each), found)]


def _alike(channels: Labels, found: Trace) -> list[Labels]:
    """A group's channels apart by the layers that write them, in their order.

    Where blocks add more channels to those of earlier ones, not all layers write all of them.
    """
    place = np.full(len(found.labels), NONE)
    place[channels] = np.arange(len(channels))
    counts = []
    for writer in found.writers:
        places = place[found.labels.channel(writer.labels)]
        if (places != NONE).any():
            counts.append(np.bincount(places[places != NONE], minlength=len(channels)))
    written = np.stack(counts, axis=1)
    _, first, kinds = np.unique(written, axis=0, return_index=True, return_inverse=True)
    return [channels[kinds.ravel() == kind] for kind in np.argsort(first)]


def _layer(module: str, parameter: str | None) -> str:
    """The layer's name: that of its module, or of the parameter among several of one module."""
    if parameter is None or parameter == f"{module}.weight":
        return module
    return parameter.removesuffix(".weight").removesuffix("_weight")
