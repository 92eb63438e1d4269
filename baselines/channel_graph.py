"""Which layers of a network can lose output channels, and what goes with a channel.

torch-pruning's dependency graph (Fang et al. 2023, "DepGraph", CVPR) follows one forward pass and
says what belongs to a channel: its entries in the batch norm, and the inputs of the layers that
read it. A conv or linear layer is prunable where no other layer writes the same channels (a
residual sum does that) and they are not the network's output.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph
from torch_pruning.ops import OPTYPE

PRUNABLE = (nn.Conv2d, nn.Linear)

# What each channel passes on its own, so that the others stay as they are when it goes.
CHANNEL_BY_CHANNEL = {
    OPTYPE.DEPTHWISE_CONV,
    OPTYPE.BN,
    OPTYPE.IN,
    OPTYPE.PRELU,
    OPTYPE.PARAMETER,
    OPTYPE.ELEMENTWISE,
    OPTYPE.RESHAPE,
    OPTYPE.CONCAT,
}


@dataclass(frozen=True)
class PrunableLayer:
    """A conv or linear layer that can lose output channels, and the layers that shrink with it."""

    channels: int
    readers: Mapping[str, int]
    """Each layer that reads the channels -> how many of its inputs come from one channel."""
    depthwise: tuple[str, ...]
    """The depthwise convs between the layer and its readers."""


def prunable_convs(model: nn.Module, example: Tensor) -> dict[str, PrunableLayer]:
    """The convs among `prunable_layers`."""
    return prunable_layers(model, example, linear=False)


def prunable_layers(model: nn.Module, example: Tensor, *, linear: bool) -> dict[str, PrunableLayer]:
    """The layers of `model` that can lose output channels, by name, in the order of its modules.

    Args:
        model: is left unchanged.
        linear: whether linear layers are wanted too, beside convs.
        example: (n, channels, height, width), a valid input, on the model's device.

    Raises:
        ValueError: if there is none, it says what holds each; if the network cannot be traced.
    """
    with traced(copy.deepcopy(model), example) as graph:
        names = graph.layers if linear else graph.convs
        refusals = {name: graph.refusal(name) for name in names}
        found = {name: graph.describe(name) for name in names if refusals[name] is None}
    if not found:
        reasons = [f"{name}: {reason}" for name, reason in refusals.items()] or ["it has no conv"]
        raise ValueError(f"No channel of this network can be removed. {'; '.join(reasons)}.")
    return found


def inputs_by_channel(model: nn.Module, example: Tensor, name: str) -> dict[str, list[list[int]]]:
    """Each layer that reads a prunable layer's channels -> for every channel, its inputs there.

    Args:
        model: is left unchanged.
        example: (n, channels, height, width), a valid input, on the model's device.
    """
    with traced(copy.deepcopy(model), example) as graph:
        return graph.inputs_by_channel(name)


@contextmanager
def traced(network: nn.Module, example: Tensor) -> Iterator["ChannelGraph"]:
    """The graph of `network`, which is in evaluation mode meanwhile.

    Tracing follows gradients, so every parameter asks for one. Both are put back at the end, also
    for parameters that became smaller.

    Raises:
        ValueError: if the network fails on `example`, or the graph does on what the network does.
    """
    training = {name: module.training for name, module in network.named_modules()}
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    network.eval().requires_grad_(True)
    try:
        yield ChannelGraph(network, example)
    finally:
        for name, module in network.named_modules():
            module.training = training[name]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])


class ChannelGraph:
    """torch-pruning's dependency graph of a network, asked by the names of layers."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.modules: dict[str, Any] = dict(network.named_modules())
        self.convs = [name for name, m in self.modules.items() if isinstance(m, nn.Conv2d)]
        self.layers = [name for name, m in self.modules.items() if isinstance(m, PRUNABLE)]
        self._names = {module: name for name, module in self.modules.items()}
        # As a parameter the input is part of the graph, where it holds the channels added to it.
        self._images = nn.Parameter(example.detach().clone())
        try:
            with torch.enable_grad():
                self._graph = DependencyGraph().build_dependency(
                    network,
                    self._images,
                    forward_fn=lambda model, images: model(images),  # else it tries model(*images)
                    unwrapped_parameters=[(self._images, 1)],
                    verbose=False,
                )
        except Exception as error:  # a user's forward may raise anything, and the graph about it
            raise ValueError(
                "Cannot find out which channels of this network belong together: tracing it with "
                f"images of shape {tuple(example.shape)} raises {type(error).__name__}: {error}."
            ) from error

    def group(self, name: str, channels: Sequence[int]) -> Any:
        """All that goes with `channels` of a layer: torch-pruning's pairs (dependency, indices)."""
        layer = self.modules[name]
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        return self._graph.get_pruning_group(layer, prune, sorted(channels))

    def readers(self, group: Any) -> dict[str, list[int]]:
        """Each conv or linear layer that reads a group's channels -> the inputs it loses."""
        return {
            self._names[dependency.target.module]: indices
            for dependency, indices in group
            if self._reads(dependency)
        }

    def inputs_by_channel(self, name: str) -> dict[str, list[list[int]]]:
        """Each reader of a layer's channels -> for every channel, its inputs there."""
        n_channels = len(self.modules[name].weight)
        found: dict[str, list[list[int]]] = {}
        for item in self.group(name, range(n_channels)):
            if self._reads(item.dep):
                inputs = found[self._names[item.dep.target.module]] = [
                    [] for _ in range(n_channels)
                ]
                for index, channel in zip(item.idxs, item.root_idxs, strict=True):
                    inputs[channel].append(index)
        return found

    def describe(self, name: str) -> PrunableLayer:
        """What shrinks with a layer that can be pruned."""
        group = self.group(name, [0])
        return PrunableLayer(
            len(self.modules[name].weight),
            {reader: len(inputs) for reader, inputs in self.readers(group).items()},
            tuple(
                self._names[dependency.target.module]
                for dependency, _ in group
                if dependency.target.type == OPTYPE.DEPTHWISE_CONV
            ),
        )

    def refusal(self, name: str) -> str | None:
        """Why a layer cannot lose output channels; None where it can."""
        module = self.modules[name]
        if not isinstance(module, PRUNABLE):
            return f"it is a {type(module).__name__}, not a Conv2d or Linear"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return f"it is a grouped conv of {module.groups} groups"
        if len(module.weight) == 1:
            return "it has only one channel"
        if module not in self._graph.module2node:
            return "the forward pass does not run it"
        group = self.group(name, [0])  # what one channel meets, all meet
        # Another writer of the channels explains more than their readers do, so it comes first.
        for dependency, _ in group:
            if self._writes(dependency) and dependency.target.module is not module:
                other = self._names[dependency.target.module]
                return f"it is coupled with {other!r}, which writes the same channels"
        for dependency, _ in group:
            if not self._reads(dependency) and not self._writes(dependency):
                obstacle = self._obstacle(dependency.target)
                if obstacle is not None:
                    return obstacle
        for reader in self.readers(group):
            if getattr(self.modules[reader], "groups", 1) > 1:
                return f"the grouped conv {reader!r} reads it"
        return None if self.readers(group) else "its channels are the network's output"

    def _reads(self, dependency: Any) -> bool:
        return self._is_dense(dependency) and self._graph.is_in_channel_pruning_fn(
            dependency.handler
        )

    def _writes(self, dependency: Any) -> bool:
        return self._is_dense(dependency) and self._graph.is_out_channel_pruning_fn(
            dependency.handler
        )

    @staticmethod
    def _is_dense(dependency: Any) -> bool:
        """Whether the layer makes each of its outputs from all of its inputs."""
        return dependency.target.type in (OPTYPE.CONV, OPTYPE.LINEAR)

    def _obstacle(self, node: Any) -> str | None:
        """Why a layer's channels cannot pass a node of the graph; None where they can."""
        module = node.module
        if node.type == OPTYPE.OUTPUT:
            return "its channels are the network's output"
        if node.type == OPTYPE.DEPTHWISE_CONV and module.in_channels != module.out_channels:
            return f"the grouped conv {self._names[module]!r} reads it"
        if module is self._images:
            return "it is added to the network's input"
        spatial_slice = node.type == OPTYPE.SLICE and module.dim != 1
        if node.type in CHANNEL_BY_CHANNEL or spatial_slice:
            return None
        layer = self._names.get(module)
        what = f"{layer!r} ({type(module).__name__})" if layer else node.type.name.lower()
        return f"{what} takes several of its channels together"
