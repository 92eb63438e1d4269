"""Contributions of a group's channels to sampled outputs of the layers that read them.

An output of a conv or linear layer is a sum over its inputs and a bias. A channel's contribution is
the part of that sum that its inputs make; without the channel, the output is less by just that.

The convs and matrix products are caught as they run, so that a layer whose weight other code
multiplies with is sampled as well.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroup, Read
from baselines.channels.dependency.removal import shared_copy
from baselines.channels.dependency.trace import plain_run
from baselines.channels.dependency.weights import Weights
from testbed.data import Images, Splits, normalise
from testbed.dispatch_mode import DispatchMode
from testbed.machine import Precision
from testbed.method import Run
from testbed.prediction import autocast, memory_format_for

Gram = NDArray[np.float64]  # (channels, channels)

IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Product:
    """A conv or a matrix product, spelled as a conv without padding."""

    maps: Tensor
    """(n, inputs, *places), of each image or of whatever else the rows are of."""
    weight: Tensor
    """(outputs, inputs of a group, *kernel)."""
    inputs: Tensor
    """The weight as it lies in the parameter, (inputs of a group, ...)."""
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def sizes(self) -> list[int]:
        """Of an output, along each dimension of its places."""
        steps = zip(
            self.maps.shape[2:], self.weight.shape[2:], self.stride, self.dilation, strict=True
        )
        return [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in steps]


@dataclass
class SampledReader:
    """A weight that reads a group's channels, and what these contribute to its outputs."""

    inputs: Tensor
    """The weight as it lies in the parameter, (inputs of a group, ...)."""
    by_channel: Tensor
    """(channels, k) int64: the inputs that come from each channel; one past the last for none."""
    gram: Gram = field(init=False)

    def __post_init__(self) -> None:
        channels = len(self.by_channel)
        self.gram = np.zeros((channels, channels))

    @torch.no_grad()
    def scale(self, scales: Tensor) -> None:
        """Scales the weights of each channel's inputs in place; `scales` is (channels,)."""
        factors = self.inputs.new_ones(len(self.inputs) + 1)
        factors[self.by_channel] = scales.to(factors)[:, None]
        self.inputs *= factors[:-1].reshape(-1, *[1] * (self.inputs.ndim - 1))


def can_be_sampled(network: nn.Module, group: ChannelGroup) -> dict[str, Read]:
    """The readers of a group whose weight is a parameter, or a part of one.

    Not one whose parameter also writes the group's channels by the same numbers, as tied weights
    do: to scale what it reads would be to scale what it writes.
    """
    parameters = {name for name, _ in network.named_parameters()}
    written = {(writer.parameter, writer.dim) for writer in group.writers}
    return {
        name: read
        for name, read in group.readers.items()
        if read.parameter in parameters and (read.parameter, read.dim) not in written
    }


def gram_matrix(contributions: Tensor) -> Gram:
    """The products of every two channels' contributions, summed over the samples, in float64.

    Args:
        contributions: (samples, channels), on any device.
    """
    values = contributions.cpu().double().numpy()
    # NumPy sees that one matrix is multiplied with itself and computes half of the products.
    gram: Gram = values.T @ values
    return gram


@dataclass(frozen=True)
class Sampler:
    """Samples what channels contribute to their readers' outputs."""

    data: Splits
    device: torch.device
    precision: Precision
    layout: torch.memory_format
    """Of the images in memory (see `memory_format_for`)."""
    images: int
    """How many training images are drawn; all are taken where there are fewer."""
    positions: int
    """How many of a reader's output values are drawn for each image, each at a place and filter of
    its own; more where there would be fewer samples than channels; all where there are fewer."""

    @classmethod
    def of_run(
        cls, network: nn.Module, data: Splits, run: Run, images: int, positions: int
    ) -> Self:
        """That of a method's run, for networks like `network`."""
        layout, precision = memory_format_for(network, data, run.device), run.fine_tuning.precision
        return cls(data, run.device, precision, layout, images, positions)

    def readers(
        self, network: nn.Module, group: ChannelGroup, generator: torch.Generator
    ) -> list[SampledReader]:
        """The readers of a group's channels that can be sampled (see `can_be_sampled`).

        Args:
            network: on the device; left unchanged.
            group: of `network`.
            generator: on the CPU; draws images and outputs.
        """
        reads = can_be_sampled(network, group)
        if not reads:
            return []
        images = self.drawn(generator)
        positions = max(self.positions, ceil(group.channels / len(images)))
        found: dict[Any, SampledReader] = {}  # by the place of the weight in memory
        labels = {str(read.parameter): read.channels for read in reads.values()}

        def sample(parameter: str, product: Product, _: Images) -> None:
            weight = product.inputs
            place = parameter, weight.storage_offset(), weight.shape, weight.stride()
            if place not in found:
                # A grouped conv reads the same channels at the same places of every group.
                channels = torch.from_numpy(labels[parameter])[: len(weight)].to(weight.device)
                by_channel = inputs_by_channel(channels, group.channels)
                found[place] = SampledReader(weight, by_channel)
            reader = found[place]
            reader.gram += gram_matrix(
                sampled_contributions(product, reader.by_channel, positions, generator)
            )

        self.catch(network, labels, images, sample, sum(read.calls for read in reads.values()))
        return list(found.values())

    def drawn(self, generator: torch.Generator) -> Images:
        """The training images that are sampled."""
        return self.data.train.drawn(self.images, generator)

    def catch(
        self,
        network: nn.Module,
        names: Iterable[str],
        images: Images,
        take: Callable[[str, Product, Images], None],
        calls: int | None = None,
    ) -> None:
        """Runs images through a network and catches the products of some weights.

        Args:
            network: on the device; left unchanged.
            names: of the weights, which are parameters.
            take: gets a weight's name, each of its products, and the images that it is of.
            calls: after so many products of a batch nothing more of it is run.
        """
        running = shared_copy(network)
        parameters = dict(running.named_parameters())
        data = self.data
        with plain_run(running):
            for part in images.batches(IMAGES_AT_ONCE):
                pixels = part.pixels.to(self.device)
                batch = normalise(pixels, data.mean, data.std, memory_format=self.layout)
                weights = Weights({name: parameters[name] for name in names})

                def taken(name: str, product: Product, part: Images = part) -> None:
                    take(name, product, part)

                products = Products(weights, len(part), calls, taken)
                # autocast keeps its casts of weights while it lasts: a later batch shows none.
                with suppress(AllSeenError), products, autocast(self.precision, self.device):
                    running(batch)


class AllSeenError(Exception):
    """Ends a run after the last reader."""


class Products(DispatchMode):
    """Catches the convs and matrix products of some weights as they run."""

    def __init__(
        self, weights: Weights, images: int, calls: int | None, take: Callable[[str, Product], None]
    ) -> None:
        """Arguments:
        weights: whose products are caught.
        images: how many go through the network.
        calls: after so many of them `AllSeenError` ends the run; None: it goes to its end.
        take: gets the parameter's name and each product.
        """
        super().__init__()
        self._weights, self._images, self._left, self._take = weights, images, calls, take

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name == "_to_copy":
            self._weights.note_cast(args[0], result)
        elif name in ("mm", "bmm", "addmm", "baddbmm"):
            first, second = args[-2:]
            self._catch(second, lambda weight: _as_conv(first, weight, self._images))
            self._catch(first, lambda weight: _as_conv(second.mT, weight.mT, self._images))
        elif name == "convolution":
            self._catch(args[1], lambda weight: _without_padding(args[0], weight, *args[3:9]))
        return result

    def _catch(self, operand: Tensor, spelled: Callable[[Tensor], Product | None]) -> None:
        weight = self._weights.found(operand)
        product = spelled(weight[1]) if weight else None
        if weight and product:
            self._take(weight[0], product)
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    raise AllSeenError


def inputs_by_channel(channels: Tensor, n: int) -> Tensor:
    """The inputs that come from each of `n` channels, (n, k); one past the last for none.

    Args:
        channels: (inputs,) int64, the channel of each; negative for none.
    """
    counts = channels[channels >= 0].bincount(minlength=n)
    found = channels.new_full((n, int(counts.max())), len(channels))
    order = channels.argsort(stable=True)[int((channels < 0).sum()) :]
    starts = counts.cumsum(0) - counts
    channel = channels[order]
    found[channel, torch.arange(len(order), device=order.device) - starts[channel]] = order
    return found


def sampled_contributions(
    product: Product, by_channel: Tensor, positions: int, generator: torch.Generator
) -> Tensor:
    """What channels contribute to random outputs of a product, without its bias.

    Args:
        by_channel: (channels, k) int64, the inputs (of a group of the conv) that come from each;
            one past the last for none.
        positions: how many outputs are drawn for each image; all, in order, where there are fewer.

    Returns:
        (samples, channels) float32.
    """
    maps, weight = product.maps, product.weight
    filters, places = len(weight), prod(product.sizes)
    drawn = _draw(len(maps), filters * places, positions, generator).to(maps.device)
    of_filter = drawn // places
    patches = _patches(product, drawn % places)
    if product.groups > 1:
        group = (of_filter // (filters // product.groups))[:, :, None, None, None]
        parts = patches.unflatten(-1, (product.groups, -1))
        patches = parts.take_along_dim(group, dim=3).squeeze(3)
    products = patches * weight.flatten(2)[of_filter].transpose(2, 3)
    each = F.pad(products.sum(dim=2).flatten(0, 1), (0, 1))
    return each[:, by_channel].sum(dim=2)


def sampled_patches(product: Product, positions: int, generator: torch.Generator) -> Tensor:
    """What random outputs of an ungrouped product read, (samples, inputs * kernel) float32.

    Args:
        positions: how many places are drawn for each image; all, in order, where there are fewer.
    """
    drawn = _draw(len(product.maps), prod(product.sizes), positions, generator)
    patches = _patches(product, drawn.to(product.maps.device))
    return patches.transpose(2, 3).flatten(2).flatten(0, 1)


def _patches(product: Product, places: Tensor) -> Tensor:
    """What outputs at some places read, (n, places, prod(kernel), inputs).

    Args:
        places: (n, places) int64, of the flattened output of each image.
    """
    maps, device = product.maps, product.maps.device
    read = torch.zeros(*places.shape, 1, dtype=torch.int64, device=device)  # flat, for each output
    for at, size, k, s, d in zip(
        torch.unravel_index(places, product.sizes),
        maps.shape[2:],
        product.weight.shape[2:],
        product.stride,
        product.dilation,
        strict=True,
    ):
        along = at[:, :, None] * s + d * torch.arange(k, device=device)
        read = (read[..., None] * size + along[:, :, None, :]).flatten(2)
    image = torch.arange(len(maps), device=device)[:, None, None]
    return maps.flatten(2)[image, :, read]


def _as_conv(rows: Tensor, weight: Tensor, images: int) -> Product | None:
    """The product of rows (..., n, inputs) with a weight (..., inputs, outputs).

    None where the weight is another one for each of a batch.
    """
    for _ in range(weight.ndim - 2):
        if weight.shape[0] > 1 and weight.stride(0):
            return None
        weight = weight[0]
    flat = rows.flatten(0, -2)
    # Rows that do not divide into as many images are one image: how many outputs are drawn of each
    # is a matter of the sample's size alone.
    parts = images if len(flat) % images == 0 else 1
    maps = flat.unflatten(0, (parts, -1)).transpose(1, 2).float()
    return Product(maps, weight.T.float()[:, :, None], weight, (1,), (1,))


def _without_padding(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    more: list[int],
    groups: int,
) -> Product:
    """A conv, or the conv that a transposed one comes to: of maps with zeros in between."""
    spatial = weight.ndim - 2
    stride, padding, dilation, more = (
        list(each) * (spatial if len(each) == 1 else 1)
        for each in (stride, padding, dilation, more)
    )
    before = after = padding
    maps, conv, inputs = x.float(), weight.detach().float(), weight.transpose(0, 1)
    if transposed:
        inputs = weight.unflatten(0, (groups, -1)).transpose(0, 1)
        sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], stride, strict=True)]
        spread = maps.new_zeros(*x.shape[:2], *sizes)
        places: list[Any] = [slice(None, None, step) for step in stride]
        spread[(..., *places)] = maps
        maps, stride = spread, [1] * spatial
        before = [
            d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)
        ]
        after = [b + m for b, m in zip(before, more, strict=True)]
        by_group = conv.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        conv = by_group.flip(tuple(range(2, weight.ndim)))
    ends = [end for pair in zip(before, after, strict=True) for end in reversed(pair)]
    maps = F.pad(maps, ends[::-1])
    return Product(maps, conv, inputs, tuple(stride), tuple(dilation), groups)


def _draw(n: int, values: int, positions: int, generator: torch.Generator) -> Tensor:
    """Which of so many output values are taken of each of n images, (n, drawn) int64."""
    if positions >= values:
        return torch.arange(values).expand(n, values)
    return torch.randint(values, (n, positions), generator=generator)
