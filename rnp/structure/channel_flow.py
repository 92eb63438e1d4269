"""Channel flow: which convs can run on a prefix of their channels, and who reads these channels.

The network is traced with `torch.fx`. A conv can be pruned at run time if its output passes only
through operations that treat each channel on its own (normalisation, activation, pooling, dropout,
flattening) until convs and linear layers read it, each of them run once. The network's first conv
is never pruned (Lin et al. 2017, section 3.2). On residual networks that leaves the first conv of
each basic block: what the second one writes is added to something else.
"""

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import fx, nn

from rnp.structure.channel_groups import prefix_sizes

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# What gives each channel from that channel alone; batch norm is handled apart, as it has weights.
CHANNELWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh,
    nn.Identity, nn.Dropout, nn.Dropout2d, *POOLS,
)  # fmt: skip
CHANNELWISE_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, torch.sigmoid,
    torch.tanh, F.dropout, F.dropout2d, F.max_pool2d, torch.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
})  # fmt: skip
CHANNELWISE_METHODS = frozenset({"relu", "sigmoid", "tanh", "contiguous"})
SPATIAL = ({2, 3}, {-1, -2})


@dataclass(frozen=True)
class PrunedConv:
    """A conv for which an action decides how many of its output channels are computed."""

    name: str
    """Dotted name of the module."""
    channels: int
    prefixes: tuple[int, ...]
    """Output channels that each action computes."""
    norm: str | None
    """The batch norm that alone reads the conv, if there is one."""
    norms: tuple[str, ...]
    """Every batch norm that the channels pass."""
    readers: Mapping[str, int]
    """Each conv or linear layer that reads the channels -> inputs that come from one channel."""
    between: tuple[str, ...]
    """Names of the graph's nodes between the conv and its readers, in order."""


@dataclass(frozen=True)
class ChannelFlow:
    """A traced network, and its convs that are pruned at run time, in the order they run."""

    graph: fx.Graph
    convs: tuple[PrunedConv, ...]
    groups: int

    @cached_property
    def step_of(self) -> dict[str, int]:
        """Each pruned conv -> which decision it is, from 0."""
        return {conv.name: step for step, conv in enumerate(self.convs)}

    @cached_property
    def step_of_outputs(self) -> dict[str, int]:
        """Each layer that puts out a pruned conv's channels, itself or a batch norm -> decision."""
        norms = {norm: step for step, conv in enumerate(self.convs) for norm in conv.norms}
        return norms | self.step_of

    @cached_property
    def step_read_by(self) -> dict[str, int]:
        """Each layer that reads a pruned conv -> which decision that conv is."""
        return {reader: step for step, conv in enumerate(self.convs) for reader in conv.readers}

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operations in the order they run."""
        return tuple(self.graph.nodes)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ChannelFlow":
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        # Node by node, as pickle would recurse through a deep network along its edges.
        def named(node: fx.Node) -> "_Name":
            return _Name(node.name)

        nodes = [
            (node.op, node.target, fx.map_arg((node.args, node.kwargs), named), node.name)
            for node in self.nodes
        ]
        return _restored, (nodes, self.convs, self.groups)


class _Name(str):
    """Stands for the node of this name."""


def _restored(nodes: list[Any], convs: tuple[PrunedConv, ...], groups: int) -> ChannelFlow:
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def node_of(argument: Any) -> Any:
        return known[argument] if isinstance(argument, _Name) else argument

    for op, target, arguments, name in nodes:
        args, kwargs = cast(Any, fx.node.map_aggregate(arguments, node_of))
        known[name] = graph.create_node(op, target, args, kwargs, name)
    return ChannelFlow(graph, convs, groups)


def channel_flow(model: nn.Module, groups: int) -> ChannelFlow:
    """Traces `model` and finds the convs that can be pruned at run time.

    A tensor that its forward makes of numbers becomes an attribute of it (`_tensor_constant0`).

    Raises:
        ValueError: if the network cannot be traced, or no conv can be pruned; says why for each.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # a user's forward may do anything with a traced value
        raise ValueError(
            f"Cannot follow the channels of {type(model).__name__}: tracing it with torch.fx "
            f"raises {type(error).__name__}: {error}. Its forward must not depend on the values "
            "of tensors."
        ) from error
    images, *others = [node for node in graph.nodes if node.op == "placeholder"]
    output = list(graph.nodes)[-1].args[0]
    if others or not isinstance(output, fx.Node):
        raise ValueError(
            f"Expected a network that makes one tensor of one, {type(model).__name__} takes "
            f"{[images.name, *(other.name for other in others)]} and returns {output}."
        )
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    convs = [node for node in calls if isinstance(modules[node.target], nn.Conv2d)]
    refusals = {n.target: "it is the first conv, which sees the image itself" for n in convs[:1]}
    follower = _Follower(modules, Counter(node.target for node in calls))
    found: list[PrunedConv] = []
    for node in convs[1:]:
        try:
            found.append(follower.pruned(node, groups))
        except _RefusedError as refused:
            refusals[node.target] = str(refused)
    if not found:
        reasons = [f"{name}: {reason}" for name, reason in refusals.items()] or ["it has no conv"]
        raise ValueError(
            f"No conv of this network can run on a prefix of its channels. {'; '.join(reasons)}."
        )
    for node in graph.find_nodes(op="call_method", target="view"):
        node.target = "reshape"  # a view may ask for a layout that the values of a prefix lack
    return ChannelFlow(graph, tuple(found), groups)


class _RefusedError(Exception):
    """Why a conv cannot be pruned."""


@dataclass(frozen=True)
class _Follower:
    """Follows the channels of convs from node to node."""

    modules: Mapping[str, nn.Module]
    times_run: Mapping[str, int]

    def pruned(self, conv: fx.Node, groups: int) -> PrunedConv:
        """Raises _RefusedError if the conv cannot be pruned."""
        name, module = str(conv.target), cast(nn.Conv2d, module_of(conv, self.modules))
        if type(module) is not nn.Conv2d:
            raise _RefusedError(f"it is a {type(module).__name__}, not a plain conv")
        if module.groups > 1:
            raise _RefusedError(f"it is a grouped conv of {module.groups} groups")
        if self.times_run[name] > 1:
            raise _RefusedError(f"it runs {self.times_run[name]} times")
        if module.out_channels == 1:
            raise _RefusedError("it has only one channel")
        readers: dict[str, int] = {}
        flat = {conv: False}  # whether a node's output has one dimension for channels and positions
        followed = [conv]
        for node in followed:  # which grows meanwhile
            for user in node.users:
                if asks_batch_size(user):
                    continue
                inputs = self._reader_inputs(user, flat[node], module.out_channels)
                if inputs is not None:
                    readers[str(user.target)] = inputs
                elif user not in flat:
                    flat[user] = self._passes(user, flat[node])
                    followed.append(user)
        if not readers:
            raise _RefusedError("nothing reads its channels")
        norms = {
            node: str(node.target)
            for node in flat
            if isinstance(module_of(node, self.modules), nn.BatchNorm2d)
        }
        users = list(conv.users)
        return PrunedConv(
            name,
            module.out_channels,
            prefix_sizes(module.out_channels, groups),
            norms.get(users[0]) if len(users) == 1 else None,
            tuple(norms.values()),
            readers,
            tuple(node.name for node in flat if node is not conv),
        )

    def _reader_inputs(self, node: fx.Node, flat: bool, channels: int) -> int | None:
        """How many inputs of a reading layer come from one channel; None for any other node."""
        module = module_of(node, self.modules)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        if type(module) not in (nn.Conv2d, nn.Linear):
            raise _RefusedError(f"{node.target!r}, which reads it, is a {type(module).__name__}")
        if self.times_run[str(node.target)] > 1:
            raise _RefusedError(f"{node.target!r}, which reads it, runs more than once")
        if isinstance(module, nn.Conv2d):
            if module.groups > 1:
                raise _RefusedError(f"the grouped conv {node.target!r} reads it")
            return 1
        if not flat or module.in_features % channels:
            raise _RefusedError(
                f"the linear layer {node.target!r} does not read its flattened channels"
            )
        return module.in_features // channels

    def _passes(self, node: fx.Node, flat: bool) -> bool:
        """Whether the output of `node` is flat, given its input.

        Raises:
            _RefusedError: if the node does not keep each channel to itself.
        """
        module = module_of(node, self.modules)
        once = self.times_run.get(str(node.target)) == 1
        if isinstance(module, nn.BatchNorm2d) and not flat and once:
            if module.running_mean is None:
                raise _RefusedError(f"{node.target!r} normalises by the statistics of each batch")
            return flat
        if isinstance(module, CHANNELWISE_MODULES) and not (flat and isinstance(module, POOLS)):
            return flat
        if flattens(node, module):
            return True
        tensor, *others = (*node.args, *node.kwargs.values()) if node.args else (None,)
        alone = isinstance(tensor, fx.Node) and not any(isinstance(o, fx.Node) for o in others)
        if alone and _is(node, CHANNELWISE_FUNCTIONS, CHANNELWISE_METHODS):
            return flat
        if alone and _is(node, {torch.mean}, {"mean"}) and not flat and _means_spatially(node):
            return not node.kwargs.get("keepdim", False) and len(node.args) < 3
        what = str(node.target) if module is not None else _operation(node)
        raise _RefusedError(
            f"{what!r} takes several of its channels together, or something else with them"
        )


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def _is(node: fx.Node, functions: Any, methods: Any) -> bool:
    known = functions if node.op == "call_function" else methods
    return node.op in ("call_function", "call_method") and node.target in known


def flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it makes (n, ...) flat: (n, C). `module` is what it calls, if that is a module."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if _is(node, {torch.flatten}, {"flatten"}):
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
    return _is(node, {torch.reshape}, {"view", "reshape"}) and _keeps_only_the_batch(node)


def _keeps_only_the_batch(node: fx.Node) -> bool:
    """Whether it is `x.view(x.size(0), -1)`, or said in another way."""
    given: Any = node.args[1:]
    shape = given[0] if len(given) == 1 else given
    if not isinstance(shape, tuple | list) or len(shape) != 2 or shape[1] != -1:
        return False
    first = shape[0]
    if not isinstance(first, fx.Node):
        return False
    of = first.args[0] if first.target is operator.getitem else first
    return isinstance(of, fx.Node) and asks_batch_size(of)


def asks_batch_size(node: fx.Node) -> bool:
    """Whether it is `x.size(0)`, or the `x.shape` of `x.shape[0]`."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    return False


def _means_spatially(node: fx.Node) -> bool:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(dims, tuple | list) and set(dims) in SPATIAL


def _operation(node: fx.Node) -> str:
    if node.op == "output":
        return "the network's output"
    if node.target in (operator.add, operator.iadd, torch.add) or node.target in ("add", "add_"):
        return "a sum"
    return getattr(node.target, "__name__", str(node.target))
