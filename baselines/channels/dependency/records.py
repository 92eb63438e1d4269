"""Records of one forward pass: what its operations showed of a network's channels."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baselines.channels.dependency.channel_labels import ChannelLabels

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Product:
    """Multiplications of one operation, such as a conv's or a matrix product's."""

    multiplications: int
    dimensions: tuple[Labels, ...]
    """The labels along each dimension that can lose channels: the cost is in proportion to what
    stays of each."""


@dataclass(frozen=True)
class Writer:
    """A layer that writes channels: its weight has outputs of its own for each."""

    module: str
    parameter: str | None
    """The weight, where it is a parameter itself and not computed from others."""
    dim: int
    """Of the weight: its outputs lie along it."""
    labels: Labels
    """Of the weight's outputs, in their order."""
    passes: bool
    """Whether it makes a channel of the same channel only, as depthwise and grouped convs do."""
    flat: bool
    """Whether it is a linear layer of one vector per image, as in a classifier's head."""


@dataclass(frozen=True)
class Reader:
    """A layer that sums over channels."""

    module: str
    weight: tuple[str, int] | None
    """The parameter that its weight lies in, and the dimension of the inputs, if there is one."""
    labels: Labels
    """Of its inputs, in their order."""


@dataclass(frozen=True)
class Statistic:
    """An operation over several channels together, such as a mean or a layer norm."""

    operation: str
    number: int
    """Of the calls of this operation, from 0."""
    dim: int
    """Of its input: the channels lie along it."""
    labels: Labels


@dataclass(frozen=True)
class Count:
    """An attribute of a module that counts channels, such as a conv's `groups`."""

    module: str
    attribute: str
    labels: Labels
    """The attribute is in proportion to what stays of these."""


@dataclass
class Trace:
    """What a run showed of a network's channels."""

    labels: ChannelLabels = field(default_factory=ChannelLabels)
    tensors: dict[str, list[Labels]] = field(default_factory=dict)
    """Each parameter and buffer -> the labels along each of its dimensions."""
    products: list[Product] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    summed: list[Labels] = field(default_factory=list)
    """Of the channels of two activations that were added: those of residual sums."""
