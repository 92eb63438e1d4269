"""Channel graph: which layers can lose output channels, and what goes with a channel.

torch-pruning's dependency graph (Fang et al. 2023, "DepGraph", CVPR) follows one forward pass and
says what belongs to a channel: its entries in the batch norm, and the inputs of the layers that
read it. A conv or linear layer is prunable where no other layer writes the same channels (a
residual sum does that) and they are not the network's output.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import Dependency
from torch_pruning.ops import OPTYPE

PRUNABLE = (nn.Conv2d, nn.Linear)
LISTED = 6  # layers, of those that an error gives reasons for

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


class Part(NamedTuple):
    """What one node of the graph loses along with channels of a layer."""

    dependency: Any
    """torch-pruning's: the node is its `target`, what is taken from it its `handler`."""
    indices: list[int]
    """What the node loses."""
    channels: list[int]
    """The layer's channel that each of the indices belongs to."""


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
        raise ValueError(
            f"No channel of this network can be removed. {_listed(refusals) or 'It has no conv'}."
        )
    return found


def why_layers_keep_their_channels(
    model: nn.Module, example: Tensor, costs: Mapping[str, int], *, linear: bool
) -> str:
    """Of the layers that cannot be pruned the dearest ones, each with its reason.

    Args:
        costs: multiplications of each layer.
        model, example, linear: as for `prunable_layers`.
    """
    with traced(copy.deepcopy(model), example) as graph:
        names = graph.layers if linear else graph.convs
        refusals = {name: graph.refusal(name) for name in names}
    dearest_first = sorted(refusals, key=lambda name: -costs.get(name, 0))
    return _listed({name: refusals[name] for name in dearest_first})


def _listed(refusals: Mapping[str, str | None]) -> str:
    """The first few layers with a reason, and how many there are beside."""
    reasons = [f"{name}: {reason}" for name, reason in refusals.items() if reason is not None]
    more = [f"and {len(reasons) - LISTED} layers more"] if len(reasons) > LISTED else []
    return "; ".join([*reasons[:LISTED], *more])


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


class _Graph(DependencyGraph):
    """torch-pruning's graph, which knows a reshape that regroups channels from a flattening."""

    def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
        super()._build_dependency(module2node)
        for node in module2node.values():
            if _regroups(node):
                node.type = OPTYPE.CUSTOMIZED  # so that no index mapping is looked for


def _regroups(node: Any) -> bool:
    """Whether a reshape goes to or comes from more than four dimensions, as a channel shuffle's."""
    if node.type != OPTYPE.RESHAPE:
        return False
    seen, pending = set(), [node]
    while pending:
        shaped = pending.pop()
        if shaped.type == OPTYPE.RESHAPE and _dimensions(shaped) > 4:
            return True
        seen.add(shaped)
        pending += [
            after
            for after in shaped.outputs
            if after.type in (OPTYPE.RESHAPE, OPTYPE.ELEMENTWISE) and after not in seen
        ]
    return False


def _dimensions(reshape: Any) -> int:
    """Of what a reshape is given; 0 where torch does not say."""
    return len(getattr(reshape.grad_fn, "_saved_self_sym_sizes", ()))


class ChannelGraph:
    """torch-pruning's dependency graph of a network, asked by the names of layers."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.modules: dict[str, Any] = dict(network.named_modules())
        self.convs = [name for name, m in self.modules.items() if isinstance(m, nn.Conv2d)]
        self.layers = [name for name, m in self.modules.items() if isinstance(m, PRUNABLE)]
        self._names = {module: name for name, module in self.modules.items()}
        self._parameters = {p: name for name, p in network.named_parameters()}
        # As a parameter the input is part of the graph, where it holds the channels added to it.
        self._images = nn.Parameter(example.detach().clone())
        try:
            with torch.enable_grad():
                self._graph = _Graph().build_dependency(
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

    def group(self, name: str, channels: Sequence[int]) -> list[Part]:
        """All that goes with `channels` of a layer, the layer itself first.

        Not torch-pruning's `get_pruning_group`: that works out the whole graph's index mappings
        anew for each group, 20 of 25 seconds for the 120 convs of a DenseNet-121.
        """
        layer = self.modules[name]
        remove = self._graph.get_pruner_of_module(layer).prune_out_channels
        node = self._graph.module2node[layer]
        found: dict[Any, tuple[Any, dict[int, int]]] = {}
        pending = [
            (Dependency(remove, remove, node, node), [_HybridIndex(c, c) for c in sorted(channels)])
        ]
        while pending:
            dependency, indices = pending.pop()
            key = dependency.target, dependency.handler
            _, known = found.setdefault(key, (dependency, {}))
            new = [index for index in indices if index.idx not in known]
            known.update(new)
            if dependency.target.type == OPTYPE.CUSTOMIZED:
                continue  # what comes after it is known to nobody
            for following in dependency.target.dependencies:
                if new and following.is_triggered_by(dependency.handler):
                    reached = new
                    for mapping in filter(None, following.index_mapping):
                        reached = mapping(reached)
                    if reached:
                        pending.append((following, reached))
        return [
            Part(dependency, list(known), list(known.values()))
            for dependency, known in found.values()
        ]

    def remove(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Takes channels of layers out of the network; the graph is of the network as it was."""
        lost: dict[Any, tuple[Any, set[int]]] = {}
        for name, channels in removed.items():
            for dependency, indices, _ in self.group(name, channels):
                key = dependency.target, dependency.handler
                lost.setdefault(key, (dependency, set()))[1].update(indices)
        for dependency, lost_indices in lost.values():
            target = dependency.target
            if target.type == OPTYPE.PARAMETER:
                owner, _, leaf = self._parameters[target.module].rpartition(".")
                setattr(self.modules[owner], leaf, dependency(sorted(lost_indices)))
            elif target.module in self._names:
                dependency(sorted(lost_indices))

    def readers(self, group: Sequence[Part]) -> dict[str, list[int]]:
        """Each conv or linear layer that reads a group's channels -> the inputs it loses."""
        return {
            self._names[part.dependency.target.module]: part.indices
            for part in group
            if self._reads(part.dependency)
        }

    def inputs_by_channel(self, name: str) -> dict[str, list[list[int]]]:
        """Each reader of a layer's channels -> for every channel, its inputs there."""
        n_channels = len(self.modules[name].weight)
        found: dict[str, list[list[int]]] = {}
        for part in self.group(name, range(n_channels)):
            if self._reads(part.dependency):
                inputs: list[list[int]] = [[] for _ in range(n_channels)]
                for index, channel in zip(part.indices, part.channels, strict=True):
                    inputs[channel].append(index)
                found[self._names[part.dependency.target.module]] = inputs
        return found

    def describe(self, name: str) -> PrunableLayer:
        """What shrinks with a layer that can be pruned."""
        group = self.group(name, [0])
        return PrunableLayer(
            len(self.modules[name].weight),
            {reader: len(inputs) for reader, inputs in self.readers(group).items()},
            tuple(
                self._names[dependency.target.module]
                for dependency, _, _ in group
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
        if any(part.dependency.target.type == OPTYPE.CUSTOMIZED for part in group):
            return "a reshape of more than four dimensions may mix its channels"
        # Another writer of the channels explains more than their readers do, so it comes first.
        for dependency, _, _ in group:
            if self._writes(dependency) and dependency.target.module is not module:
                other = self._names[dependency.target.module]
                return f"it is coupled with {other!r}, which writes the same channels"
        for dependency, _, _ in group:
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
