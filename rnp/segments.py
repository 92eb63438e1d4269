"""The traced network cut where decisions are made, for the run that skips.

A segment reaches from one pruned conv to just before the next; the first one starts at the images.
How many channels it computes depends on few decisions: its own, and those of the convs whose output
is still to be read. Images that agree in these can run through it as one batch. A linear layer that
reads a pruned conv starts a segment too: it depends on one decision fewer than that conv did, and
its speed, unlike a conv's, is that of reading its weights, once for each batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import fx, nn

from rnp.channel_flow import ChannelFlow
from rnp.prefix_layers import PrefixConv2d

_IDLE_IN_EVALUATION = (nn.Identity, nn.Dropout, nn.Dropout2d)
_RELUS = frozenset({F.relu, torch.relu, "relu"})
_ASKED_OF_TENSORS = frozenset({"shape", "device", "dtype"})


class Operation(NamedTuple):
    """An operation of the network, with those after it that are folded into it."""

    node: fx.Node
    gives: fx.Node
    """`node`, or the last of what is folded into it."""
    takes: tuple[fx.Node, ...]
    """What gives each of the inputs of `node`."""
    norm: str | None = None
    """A batch norm that is folded into a conv."""
    relu: bool = False


@dataclass
class Segment:
    """Operations that run together."""

    decision: int | None = None
    """The decision that has to be made first, if any: about the conv that it starts with."""
    operations: list[Operation] = field(default_factory=list)
    takes: list[fx.Node] = field(default_factory=list)
    """Values of earlier segments, or the images."""
    keeps: list[fx.Node] = field(default_factory=list)
    """Values of its own that later segments take, or the logits."""
    last_uses: list[fx.Node] = field(default_factory=list)
    """Those of `takes` that no later segment takes."""
    steps: tuple[int, ...] = ()
    """The decisions on which it depends how many channels there are."""


@dataclass(frozen=True)
class Segments:
    """A network in segments: one before the first decision, at least one after each."""

    images: fx.Node
    logits: fx.Node
    all: tuple[Segment, ...]
    observed: tuple[fx.Node, ...]
    """What each decision is made from: the input of its conv."""
    step_of: Mapping[fx.Node, int]
    """Each node that gives a prefix of a conv's channels -> the decision about that conv."""


def cut_into_segments(flow: ChannelFlow, modules: Mapping[str, nn.Module]) -> Segments:
    """Cuts the network that `flow` traced.

    Args:
        modules: the network's, by name.
    """
    between = {name: step for step, conv in enumerate(flow.convs) for name in conv.between}
    pruned = {
        node: flow.step_of[str(node.target)]
        for node in flow.nodes
        if node.op == "call_module" and node.target in flow.step_of
    }
    step_of = {node: between[node.name] for node in flow.nodes if node.name in between} | pruned
    operations, same = _operations(flow, modules)
    by_value = {operation.gives: operation for operation in operations}
    segments = [Segment()]
    for operation in operations:
        if operation.node in pruned:
            segments.append(Segment(pruned[operation.node]))
        elif isinstance(_module(operation.node, modules), nn.Linear) and _reads(operation, step_of):
            segments.append(Segment())
        _add(operation, segments[-1], by_value)
    logits = _source(flow.nodes[-1].all_input_nodes[0], same)
    taken = {logits}
    for segment in reversed(segments):
        segment.keeps = [o.gives for o in segment.operations if o.gives in taken]
        segment.last_uses = [value for value in segment.takes if value not in taken]
        taken.update(segment.takes)
        steps = {step_of[value] for value in segment.takes if value in step_of}
        own = set() if segment.decision is None else {segment.decision}
        segment.steps = tuple(sorted(steps | own))
    observed = tuple(operation.takes[0] for operation in operations if operation.node in pruned)
    return Segments(flow.nodes[0], logits, tuple(segments), observed, step_of)


def _operations(
    flow: ChannelFlow, modules: Mapping[str, nn.Module]
) -> tuple[list[Operation], dict[fx.Node, fx.Node]]:
    """What is to run, in order, and each node that does nothing -> its input."""
    operations: list[Operation] = []
    same: dict[fx.Node, fx.Node] = {}
    folded: set[fx.Node] = set()
    for node in flow.nodes:
        module = _module(node, modules)
        if node.op in ("placeholder", "output") or node in folded:
            continue
        if isinstance(module, _IDLE_IN_EVALUATION):
            same[node] = node.all_input_nodes[0]
            continue
        takes = tuple(_source(used, same) for used in node.all_input_nodes)
        last, norm, relu = node, None, False
        if type(module) is PrefixConv2d:
            after = _only_user(last)
            if after is not None and _has_statistics(_module(after, modules)):
                last, norm = after, str(after.target)
                folded.add(after)
            after = _only_user(last)
            if after is not None and _is_relu(after, modules):
                last, relu = after, True
                folded.add(after)
        operations.append(Operation(node, last, takes, norm, relu))
    return operations, same


def _source(node: fx.Node, same: Mapping[fx.Node, fx.Node]) -> fx.Node:
    while node in same:
        node = same[node]
    return node


def _add(operation: Operation, segment: Segment, by_value: Mapping[fx.Node, Operation]) -> None:
    """Adds an operation and, before it, what it needs that each segment computes for itself."""
    own = {earlier.gives for earlier in segment.operations}
    for value in operation.takes:
        if value in own or value in segment.takes:
            continue
        if value in by_value and _is_of_the_batch(value, by_value):
            _add(by_value[value], segment, by_value)
        else:
            segment.takes.append(value)
    segment.operations.append(operation)


def _is_of_the_batch(value: fx.Node, by_value: Mapping[fx.Node, Operation]) -> bool:
    """Whether the value says nothing of single images: a weight, or the size of the batch."""
    if value not in by_value:
        return False
    asks = value.op == "call_method" and value.target in ("size", "dim")
    gets = value.op == "call_function" and value.target is getattr
    if asks or (gets and value.args[1] in _ASKED_OF_TENSORS):
        return True
    return all(_is_of_the_batch(used, by_value) for used in by_value[value].takes)


def _reads(operation: Operation, step_of: Mapping[fx.Node, int]) -> bool:
    return any(value in step_of for value in operation.takes)


def _module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_statistics(module: nn.Module | None) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return type(_module(node, modules)) is nn.ReLU or (
        node.op in ("call_function", "call_method") and node.target in _RELUS
    )
