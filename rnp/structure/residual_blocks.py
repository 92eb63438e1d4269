"""Residual blocks of a traced network: sums of a branch and the unchanged input of that branch.

A block can be skipped for an image if leaving its branch out leaves its input, of the same shape:
the shortcut is the identity, the branch reads nothing but the block's input, and nothing but the
sum reads the branch. Blocks whose shortcut changes the maps are always computed.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from rnp.structure.trace import SUMS, graph_of, listed_nodes, reshape_views, traced, writes
from testbed.inference_form import module_of
from testbed.prediction import evaluating


@dataclass(frozen=True)
class Block:
    """A residual block, by the names of the graph's nodes."""

    name: str
    """Dotted name of the module that holds its layers, or of its first layer."""
    channels: int
    """Of its input, and so of its output."""
    input: str
    shortcut: str
    """What is added to the branch: the input, or what hands it on unchanged."""
    branch: tuple[str, ...]
    """In the order in which they run."""
    sum: str
    norms: tuple[str, ...]
    """Dotted names of the batch norms of the branch."""


@dataclass(frozen=True)
class ResidualBlocks:
    """A traced network, and its blocks that can be skipped, in the order they run."""

    graph: fx.Graph
    blocks: tuple[Block, ...]
    in_place: bool
    """Whether an operation may write into what another one made."""

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operations in the order they run."""
        return tuple(self.graph.nodes)

    @cached_property
    def node(self) -> dict[str, fx.Node]:
        """By name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def step_of(self) -> dict[fx.Node, int]:
        """Each operation of a branch, and each block's sum -> which block it is of, from 0."""
        return {
            self.node[name]: step
            for step, block in enumerate(self.blocks)
            for name in (*block.branch, block.sum)
        }

    def route(self, kept: Sequence[bool]) -> "ResidualBlocks":
        """The network that computes these blocks for every image, and has none to decide about."""
        graph = deepcopy(self.graph)
        copied = dict(zip(self.node, graph.nodes, strict=True))
        for block, keep in zip(self.blocks, kept, strict=True):
            if not keep:
                copied[block.sum].replace_all_uses_with(copied[block.input])
                for name in (block.sum, *reversed(block.branch)):
                    graph.erase_node(copied[name])
        return ResidualBlocks(graph, (), self.in_place)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ResidualBlocks":
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        return _restored, (listed_nodes(self.graph), self.blocks, self.in_place)


def _restored(nodes: list[Any], *others: Any) -> ResidualBlocks:
    return ResidualBlocks(graph_of(nodes), *others)


def residual_blocks(model: nn.Module) -> ResidualBlocks:
    """Traces `model` and finds the residual blocks that can be skipped.

    Its modules' modes stay as they are.

    Raises:
        ValueError: if the network cannot be traced, or no block can be skipped; says why for each.
    """
    with evaluating(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        graph = traced(model)
    reshape_views(graph)
    finder = _Finder(tuple(graph.nodes), dict(model.named_modules()))
    blocks, refusals = finder.found()
    if not blocks:
        reasons = refusals or ["it adds no two tensors"]
        raise ValueError(
            f"No residual block of {type(model).__name__} can be skipped: {'; '.join(reasons)}. "
            "Expected sums of a branch and its own input, as in resnet20."
        )
    in_place = any(writes(node, finder.modules) for node in graph.nodes)
    return ResidualBlocks(graph, tuple(blocks), in_place)


class _RefusedError(Exception):
    """Why a sum is no block that can be skipped."""


@dataclass(frozen=True)
class _Finder:
    nodes: tuple[fx.Node, ...]
    modules: Mapping[str, nn.Module]

    def found(self) -> tuple[list[Block], list[str]]:
        """The blocks, and a reason for each sum that is none."""
        blocks: list[Block] = []
        refusals = []
        taken: set[fx.Node] = set()
        for node in self.nodes:
            called = node.op in ("call_function", "call_method") and node.target in SUMS
            if not called or len(node.all_input_nodes) != 2:
                continue
            try:
                block, branch = self._block(node)
                if taken & set(branch):
                    raise _RefusedError("there is another block inside of it")
            except _RefusedError as refused:
                refusals.append(f"{node.name}: {refused}")
                continue
            taken.add(node)
            blocks.append(block)
        return blocks, refusals

    def _block(self, added: fx.Node) -> tuple[Block, list[fx.Node]]:
        first, second = added.all_input_nodes
        for shortcut, end in ((first, second), (second, first)):
            start = self._unchanged(shortcut)
            branch = self._between(start, end)
            if branch and start.op != "placeholder":
                self._check(start, shortcut, branch, added)
                return self._described(start, shortcut, branch, added), branch
            if branch:
                raise _RefusedError("it starts from the images themselves")
        raise _RefusedError("neither side is what the other one starts from")

    def _unchanged(self, node: fx.Node) -> fx.Node:
        while type(module_of(node, self.modules)) is nn.Identity:
            (node,) = node.all_input_nodes
        return node

    def _between(self, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The operations on all ways from `start` to `end`, in order; none if there is no way."""
        after, before = {start}, {end}
        for node in self.nodes:
            if not after.isdisjoint(node.all_input_nodes):
                after.add(node)
        for node in reversed(self.nodes):
            if not before.isdisjoint(node.users):
                before.add(node)
        return [node for node in self.nodes if node in after & before and node is not start]

    def _check(
        self, start: fx.Node, shortcut: fx.Node, branch: list[fx.Node], added: fx.Node
    ) -> None:
        inside = set(branch)
        for node in branch:
            for used in node.all_input_nodes:
                if used not in inside and used is not start and used.op != "get_attr":
                    raise _RefusedError(f"its branch also reads {used.name}")
            if others := [user.name for user in node.users if user not in (*inside, added)]:
                raise _RefusedError(f"{others[0]} also reads its branch")
            if node.args and node.args[0] is start and writes(node, self.modules):
                raise _RefusedError(f"{node.name} writes into its input")
        if writes(added, self.modules) and added.args[0] is shortcut:
            later = self.nodes[self.nodes.index(added) + 1 :]
            if not {*start.users, *shortcut.users}.isdisjoint(later):
                raise _RefusedError("it writes into its input, which is read later")

    def _described(
        self, start: fx.Node, shortcut: fx.Node, branch: list[fx.Node], added: fx.Node
    ) -> Block:
        called = [str(node.target) for node in branch if node.op == "call_module"]
        levels = zip(*(name.split(".") for name in called), strict=False)
        common = [level[0] for level in takewhile(lambda level: len({*level}) == 1, levels)]
        channels = [
            found
            for node in branch
            if start in node.all_input_nodes and (found := _channels(module_of(node, self.modules)))
        ]
        if not channels:
            raise _RefusedError("no conv or batch norm reads its input")
        return Block(
            ".".join(common) or called[0],
            channels[0],
            start.name,
            shortcut.name,
            tuple(node.name for node in branch),
            added.name,
            tuple(name for name in called if isinstance(self.modules[name], _BatchNorm)),
        )


def _channels(layer: nn.Module | None) -> int:
    """How many maps a layer reads; 0 if it does not say."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    if isinstance(layer, _NormBase):
        return layer.num_features
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else 0
