"""Removal of output channels from convs and linear layers, with all that belongs to them.

torch-pruning takes an operation that it does not know for an elementwise one, so every removal is
checked: the smaller network must give what the whole one gives while the layers that read the
removed channels see zeros.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from baselines.channels.channel_graph import ChannelGraph, traced
from testbed.data import Splits, normalise
from testbed.names import unknown

# Largest difference of a smaller network from the masked one, as a share of the largest output.
# Rounding, TF32 convs included, makes about 0.001; a wrongly taken channel far more.
TOLERANCE = 0.01


def n_removed(keep_ratio: float, channels: int) -> int:
    """How many of a layer's `channels` go at `keep_ratio`: the one rule of every channel method.

    One channel stays at least. Halves are rounded to even, as Python and `ln_structured` of
    `torch.nn.utils.prune`, with `amount=1 - keep_ratio`, round them.
    """
    return min(round((1 - keep_ratio) * channels), channels - 1)


def example_images(data: Splits, device: torch.device) -> Tensor:
    """Two normalised training images (2, channels, height, width), to trace a network with."""
    return normalise(data.train[:2].pixels.to(device), data.mean, data.std)


def remove_channels(
    model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A copy of `model` without the given output channels of its convs and linear layers.

    Args:
        model: is left unchanged.
        example: (n, channels, height, width), a valid input, on the model's device.
        removed: name of a layer -> indices of the output channels that go.

    Raises:
        ValueError: if a layer is not known or cannot be pruned, an index is wrong, a layer would
            lose all its channels, or the smaller network fails or computes something else than the
            masked one. Names the layer.
    """
    network, failure = _without(model, example, removed)
    if failure is None:
        return network
    alone = [name for name in removed if _without(model, example, {name: removed[name]})[1]]
    raise ValueError(
        f"Cannot remove channels of {', '.join(map(repr, alone or removed))}: the smaller network "
        f"{failure}. What follows treats the channels in a way that the dependency graph does not "
        "see: keep them in dimension 1, and let `forward` hold no fixed number of them."
    )


def _without(
    model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, str | None]:
    """The smaller network, and how it fails, if it does."""
    network = copy.deepcopy(model)
    with traced(network, example) as graph:
        inputs = [
            graph.readers(_checked_group(graph, name, channels))
            for name, channels in removed.items()
            if len(channels)
        ]
        with torch.no_grad():
            with zeroed_inputs(graph.modules, *inputs):
                expected = network(example)
            try:
                graph.remove(
                    {name: channels for name, channels in removed.items() if len(channels)}
                )
                got = network(example)
            except Exception as error:  # a user's forward may raise anything on smaller tensors
                return network, f"raises {type(error).__name__}: {error}"
    return network, _difference(got, expected)


def _checked_group(graph: ChannelGraph, name: str, channels: Sequence[int]) -> Any:
    if name not in graph.modules:
        raise ValueError(unknown("layer", name, graph.layers))
    refusal = graph.refusal(name)
    if refusal is not None:
        raise ValueError(f"Cannot remove channels of {name!r}: {refusal}.")
    n_channels = len(graph.modules[name].weight)
    if len(set(channels)) < len(channels) or not all(0 <= c < n_channels for c in channels):
        raise ValueError(
            f"Expected different channels of {name!r}, from 0 to {n_channels - 1}; "
            f"got {list(channels)}."
        )
    if len(channels) == n_channels:
        raise ValueError(f"Cannot remove all {n_channels} channels of {name!r}: one must stay.")
    return graph.group(name, channels)


@contextmanager
def zeroed_inputs(
    modules: Mapping[str, nn.Module], *inputs: Mapping[str, Sequence[int] | Tensor]
) -> Iterator[None]:
    """Lets each layer see zeros at the given inputs, instead of what reaches it.

    Args:
        modules: of the network, by name.
        inputs: name of a layer -> indices of its inputs; all of them hold.
    """
    hooks = []
    for readers in inputs:
        for reader, indices in readers.items():
            layer = modules[reader]
            dim = -1 if isinstance(layer, nn.Linear) else 1

            def mask(
                _: nn.Module,
                seen: tuple[Tensor],
                dim: int = dim,
                indices: Sequence[int] | Tensor = indices,
            ) -> tuple[Tensor]:
                index = torch.as_tensor(indices, device=seen[0].device)
                return (seen[0].index_fill(dim, index, 0),)

            hooks.append(layer.register_forward_pre_hook(mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _difference(got: Tensor, expected: Tensor) -> str | None:
    if got.shape != expected.shape:
        return f"gives outputs of shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    off = (got - expected).abs().max().item()
    if off > TOLERANCE * expected.abs().max().item():
        return f"gives outputs up to {off:.2g} off those with the channels at zero"
    return None
