"""Cost of a network, found out from the network alone: multiplications, weights, latency.

Multiplications are counted from the operations that run on each image, so a channel masked with
zeros earns nothing, and the work of deciding what to skip is included. Non-zero multiplications are
a figure of their own: what would be left if hardware could skip each single zero weight.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd

from testbed.latency import Latency, measure_latency
from testbed.operations import UncountedOperationError, counting_multiplications
from testbed.prediction import evaluating

__all__ = [
    "Cost",
    "Latency",
    "UncountedOperationError",
    "count_multiplications",
    "count_parameters",
    "layers_kept_whole",
    "measure_latency",
    "multiplications_by_layer",
    "nonzero_weights",
    "sparsity",
    "weights_by_layer",
]


class Inputs(Protocol):
    """Normalised images of a network: a tensor, or what computes slices of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Tensor: ...


@runtime_checkable
class TellsDecisions(Protocol):
    """A network that can tell what it decides, so that not every image need be run alone."""

    def decided(self, images: Tensor) -> Tensor:
        """Decisions (n, decisions) on normalised images: images that decide alike cost alike."""
        ...


@dataclass(frozen=True)
class Cost:
    """Multiplications of n images, each run alone."""

    per_image: Tensor
    """(n,) int64."""
    per_layer: dict[str, Tensor]
    """Dotted name of a module -> (n,) int64, of the modules that multiply for any of the images.

    Work is booked on the innermost module running, on "" outside of all; summed it is `per_image`.
    """
    nonzero_multiplications: float
    """Mean per image, where conv and linear layers count their non-zero weights only."""
    decides_per_image: bool
    """Whether what runs depends on what is seen, even if it came to the same for these images."""

    @property
    def multiplications(self) -> float:
        """Mean per image."""
        return self.per_image.double().mean().item()


def count_multiplications(network: nn.Module, inputs: Inputs, batch_size: int = 256) -> Cost:
    """Counts the multiplications that each image costs, in evaluation mode.

    Where the network runs through without knowing any pixel, and a few images agree, that is the
    cost of all. Else each image is run alone (some milliseconds an image), then all in batches. Of
    a network that tells its decisions, two of the images that decide alike are run for all.

    Args:
        inputs: (n, C, H, W) normalised floats, read a batch at a time; moved to the network's
            device.
        batch_size: of the batches.

    Raises:
        UncountedOperationError: if an operation runs whose multiplications are not known.
        ValueError: if there are no images, or the cost of an image depends on its batch.
    """
    n = len(inputs)
    if n == 0:
        raise ValueError("Expected at least one image to count the multiplications of, got none.")
    with evaluating(network):
        samples = [
            multiplications_by_layer(network, inputs[place : place + 1])
            for place in range(0, n, -(-n // 4))
        ]
        blind_alone, blind_batch = _count_blind(network, inputs)
        decides = blind_batch is None or any(sample != blind_alone for sample in samples)
        if blind_batch is None or decides:
            count = _by_decisions if isinstance(network, TellsDecisions) else _each_alone
            images = count(network, inputs, batch_size)
            in_batches = sum(
                multiplications_by_layer(network, batch).total()
                for batch in _batches(inputs, batch_size)
            )
        else:
            images, in_batches = samples[:1] * n, blind_batch.total()
        decide = isinstance(network, TellsDecisions) or any(each != images[0] for each in images)
        _check_batches(in_batches, images, decide)
        layers = dict.fromkeys(layer for image in images for layer in +image)
        per_layer = {layer: torch.tensor([image[layer] for image in images]) for layer in layers}
        nonzero = _nonzero(network, {layer: int(each.sum()) for layer, each in per_layer.items()})
    per_image = torch.tensor([image.total() for image in images])
    return Cost(per_image, per_layer, nonzero / n, decides)


def multiplications_by_layer(network: nn.Module, images: Tensor) -> Counter[str]:
    """Multiplications of one run in evaluation mode, by layer as in `Cost.per_layer`.

    For networks that may decide per image, ask `count_multiplications`.

    Args:
        images: (n, C, H, W) normalised floats; moved to the network's device.
    """
    (by_layer,) = _in_turn(network, [images])
    return by_layer


def _batches(inputs: Inputs, size: int) -> Iterator[Tensor]:
    return (inputs[first : first + size] for first in range(0, len(inputs), size))


def _by_decisions(network: nn.Module, inputs: Inputs, batch_size: int) -> list[Counter[str]]:
    """As `_each_alone`, of two of the images that decide alike, or of all where these differ.

    They may where one comes to decide otherwise when it is alone, as rounding differs.
    """
    assert isinstance(network, TellsDecisions)
    device = next(network.parameters()).device
    with torch.no_grad():
        decided = [network.decided(each.to(device)) for each in _batches(inputs, batch_size)]
    number_of = torch.cat(decided).unique(dim=0, return_inverse=True)[1].tolist()
    alike: dict[int, list[int]] = {}
    for place, number in enumerate(number_of):
        alike.setdefault(number, []).append(place)

    def counted(places: Iterable[int]) -> dict[int, Counter[str]]:
        places = list(places)  # all in one go: setting the mode may cost what is prepared
        images = (inputs[place : place + 1] for place in places)
        return dict(zip(places, _in_turn(network, images), strict=True))

    counts = counted(place for kind in alike.values() for place in kind[:2])
    differ = [kind for kind in alike.values() if counts[kind[0]] != counts[kind[:2][-1]]]
    counts |= counted(place for kind in differ for place in kind[2:])
    return [counts.get(place, counts[alike[n][0]]) for place, n in enumerate(number_of)]


def _each_alone(network: nn.Module, inputs: Inputs, batch_size: int) -> list[Counter[str]]:
    """Multiplications of each image, by layer, as if none had run before it.

    Setting the mode may cost a network what it has prepared, so it is set once for all images, or
    for each if the network keeps results: then the first image costs less when it comes again.
    """

    def images() -> Iterator[Tensor]:
        return (image for batch in _batches(inputs, batch_size) for image in batch.split(1))

    *counts, again = _in_turn(network, chain(images(), [inputs[:1]]))
    if again == counts[0]:
        return counts
    return [multiplications_by_layer(network, image) for image in images()]


def _in_turn(network: nn.Module, batches: Iterable[Tensor]) -> list[Counter[str]]:
    """Multiplications of several batches that run one after the other, by layer."""
    parameter = next(network.parameters(), None)
    counts = []
    with (
        evaluating(network),
        torch.no_grad(),
        torch.autocast("cpu" if parameter is None else parameter.device.type, enabled=False),
        counting_multiplications(network) as by_layer,
    ):
        for images in batches:
            network(images if parameter is None else images.to(parameter.device))
            counts.append(by_layer.copy())
            by_layer.clear()
    return counts


def _count_blind(
    network: nn.Module, inputs: Inputs
) -> tuple[Counter[str], Counter[str]] | tuple[None, None]:
    """Counts of one image and of all in one batch, from tensors that have shapes but no values.

    None if the run needs a value, as it does where the network decides by what it sees.
    """
    try:
        copied = copy.deepcopy(network)  # as a module may keep what it computes
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            image, n = mode.from_tensor(inputs[:1]), len(inputs)
            alone = multiplications_by_layer(copied, image)
            if n == 1:
                return alone, alone
            return alone, multiplications_by_layer(copied, image.repeat(n, *[1] * (image.ndim - 1)))
    except Exception:  # Whatever fails without values shows itself, or does not, in a real run.
        return None, None


def _check_batches(in_batches: int, images: list[Counter[str]], decide: bool) -> None:
    """Refuses networks that decide for a whole batch, whose accuracy is not that of their cost.

    Five per cent are allowed, as rounding differs between batch sizes and may tip a decision.
    Batches may also be cheaper where no image decides anything: weights composed once a batch.

    Args:
        decide: whether images do, so that batches may not be cheaper.
    """
    alone = sum(image.total() for image in images)
    if in_batches > 1.05 * alone or (decide and in_batches < 0.95 * alone):
        raise ValueError(
            f"{len(images)} images take {in_batches:,} multiplications in batches, but {alone:,} "
            "one at a time. An image's cost must not depend on the others: decide for each image. "
            "If the network has a method `decided`, it must tell them apart that cost differently."
        )


def _nonzero(network: nn.Module, per_layer: dict[str, int]) -> float:
    """The sum of `per_layer`, of conv and linear layers only the share of non-zero weights.

    Exact: every weight of such a layer is used equally often.
    """
    weights = weights_by_layer(network)
    return sum(
        count * int(weights[layer].count_nonzero()) / weights[layer].numel()
        if layer in weights
        else count
        for layer, count in per_layer.items()
    )


def weights_by_layer(network: nn.Module) -> dict[str, Tensor]:
    """The weight tensors of conv and linear layers, by the layer's dotted name."""
    return {
        name: module.weight
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def layers_kept_whole(network: nn.Module, dense: nn.Module) -> list[str]:
    """The conv and linear layers with all outputs that they have in `dense`, by name.

    None where no layer lost any, or where the networks' layers have other names.
    """
    ours, theirs = (
        {
            name: module.weight.shape[1 if getattr(module, "transposed", False) else 0]
            for name, module in each.named_modules()
            if isinstance(module, (_ConvNd, nn.Linear))
        }
        for each in (network, dense)
    )
    if ours.keys() != theirs.keys() or ours == theirs:
        return []
    return [name for name, outputs in ours.items() if outputs == theirs[name]]


def count_parameters(network: nn.Module) -> int:
    """Numbers that training learns, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def nonzero_weights(network: nn.Module) -> int:
    """Non-zero weights of the conv and linear layers, biases not included."""
    return sum(int(weight.count_nonzero()) for weight in weights_by_layer(network).values())


def sparsity(network: nn.Module) -> float:
    """Share of zeros among the weights of the conv and linear layers; 0 if there are none."""
    total = sum(weight.numel() for weight in weights_by_layer(network).values())
    return 1 - nonzero_weights(network) / total if total else 0.0
