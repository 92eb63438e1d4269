"""Channel flow: which convs can run on a prefix of their channels, and who reads these channels.

The network is traced with `torch.fx`, in evaluation mode whatever its mode is. A conv can be pruned
at run time if its output passes only through operations that keep each channel to itself
(normalisation, activation, pooling, padding, dropout, flattening) until convs and linear layers
read it, each of them run once. Whether an operation does is tried out: on a prefix of the channels
it must give the same prefix of what it gives on all. The network's first conv is never pruned (Lin
et al. 2017, section 3.2). On residual networks that leaves the first conv of each basic block: what
the second one writes is added to something else.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp.structure.channel_groups import prefix_sizes
from rnp.structure.trace import SUMS, graph_of, in_mode, listed_nodes, reshape_views, traced
from testbed.inference_form import module_of
from testbed.prediction import evaluating

TRIED_ON = (2, 6, 56, 63)  # images, channels, and sides that several poolings may halve
TRIED_PREFIX = 2  # of these channels


class _Tried(NamedTuple):
    """What a node gives for all channels that a trial has, and for a prefix of them."""

    whole: Any
    prefix: Any


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
    per_channel: tuple[str, ...]
    """The layers with weights for each channel that the channels pass: batch norm, PReLU."""
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
    norms: Mapping[str, int]
    """Each batch norm that meets a mixture of widths -> the decision about its input's prefix: the
    last one whose readers' outputs come to it with no batch norm between."""

    @cached_property
    def step_of(self) -> dict[str, int]:
        """Each pruned conv -> which decision it is, from 0."""
        return {conv.name: step for step, conv in enumerate(self.convs)}

    @cached_property
    def step_of_outputs(self) -> dict[str, int]:
        """Each layer with weights for a pruned conv's channels, the conv too -> decision."""
        passed = {name: step for step, conv in enumerate(self.convs) for name in conv.per_channel}
        return passed | self.step_of

    @cached_property
    def step_read_by(self) -> dict[str, int]:
        """Each layer that reads a pruned conv -> which decision that conv is."""
        return {reader: step for step, conv in enumerate(self.convs) for reader in conv.readers}

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operations in the order they run."""
        return tuple(self.graph.nodes)

    def with_prefixes(self, prefixes: Sequence[Sequence[int]]) -> "ChannelFlow":
        """The same flow, where each conv's actions compute these numbers of channels.

        Raises:
            ValueError: if they do not rise to all channels of the conv; names it.
        """
        for conv, sizes in zip(self.convs, prefixes, strict=True):
            if list(sizes) != sorted(sizes) or sizes[0] < 1 or sizes[-1] != conv.channels:
                raise ValueError(
                    f"Expected prefixes of {conv.name!r} that rise from 1 channel or more to all "
                    f"{conv.channels}, got {list(sizes)}. The network file is of another network."
                )
        convs = zip(self.convs, prefixes, strict=True)
        return replace(self, convs=tuple(replace(c, prefixes=tuple(p)) for c, p in convs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "ChannelFlow":
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        return _restored, (listed_nodes(self.graph), self.convs, self.groups, self.norms)


def _restored(nodes: list[Any], *others: Any) -> ChannelFlow:
    return ChannelFlow(graph_of(nodes), *others)


def channel_flow(model: nn.Module, groups: int) -> ChannelFlow:
    """Traces `model` and finds the convs that can be pruned at run time.

    Its modules' modes stay as they are. What its forward does only in training is left out, but for
    functions that are told the mode, such as functional dropout: they get the mode of the run (see
    `traced`).

    Raises:
        ValueError: if the network cannot be traced, or no conv can be pruned; says why for each.
    """
    with evaluating(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        return _channel_flow(model, groups)


def _channel_flow(model: nn.Module, groups: int) -> ChannelFlow:
    graph = traced(model)
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    convs = [node for node in calls if isinstance(modules[node.target], nn.Conv2d)]
    refusals = {n.target: "it is the first conv, which sees the image itself" for n in convs[:1]}
    times_run = Counter(str(node.target) for node in calls)
    follower = _Follower(tuple(graph.nodes), modules, times_run)
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
    reshape_views(graph)
    return ChannelFlow(graph, tuple(found), groups, _mixed_norms(graph, modules, times_run, found))


def _mixed_norms(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    times_run: Mapping[str, int],
    convs: Sequence[PrunedConv],
) -> dict[str, int]:
    """See `ChannelFlow.norms`. A norm that runs twice is left as it is, as it has no one input."""
    read_by = {reader: step for step, conv in enumerate(convs) for reader in conv.readers}
    norms: dict[str, int] = {}
    mixed: dict[fx.Node, int] = {}  # a node -> the last decision that its values' spread is of
    for node in graph.nodes:
        module = module_of(node, modules)
        steps = [mixed[used] for used in node.all_input_nodes if used in mixed]
        if module is not None and node.target in read_by:
            mixed[node] = read_by[str(node.target)]
        elif isinstance(module, _BatchNorm):
            plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d)
            once = times_run[str(node.target)] == 1
            if steps and plain and once and module.running_mean is not None:
                norms[str(node.target)] = max(steps)
        elif steps:
            mixed[node] = max(steps)
    return norms


class _RefusedError(Exception):
    """Why a conv cannot be pruned."""


@dataclass(frozen=True)
class _Follower:
    """Follows the channels of convs from node to node."""

    nodes: tuple[fx.Node, ...]
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
        images = torch.randn(TRIED_ON, generator=torch.Generator().manual_seed(0)).to(module.weight)
        tried = {conv: _Tried(images, images[:, :TRIED_PREFIX])}
        readers: dict[str, int] = {}
        for node in self.nodes:
            if tried.keys().isdisjoint(node.all_input_nodes):
                continue
            inputs = self._reader_inputs(node, tried, module.out_channels)
            if inputs is not None:
                readers[str(node.target)] = inputs
            else:
                tried[node] = self._passed(node, tried, module.out_channels)
        if not readers:
            raise _RefusedError("nothing reads its channels")
        between = [n for n, values in tried.items() if isinstance(values.whole, Tensor)][1:]
        per_channel = {
            node: str(node.target)
            for node in between
            if _weights_of(module_of(node, self.modules)) > 1
        }
        (first, *others) = conv.users
        norms = isinstance(module_of(first, self.modules), nn.BatchNorm2d) and not others
        return PrunedConv(
            name,
            module.out_channels,
            prefix_sizes(module.out_channels, groups),
            str(first.target) if norms else None,
            tuple(per_channel.values()),
            readers,
            tuple(node.name for node in between),
        )

    def _reader_inputs(
        self, node: fx.Node, tried: Mapping[fx.Node, _Tried], channels: int
    ) -> int | None:
        """How many inputs of a reading layer come from one channel; None for any other node."""
        module = module_of(node, self.modules)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        if type(module) not in (nn.Conv2d, nn.Linear):
            raise _RefusedError(f"{node.target!r}, which reads it, is a {type(module).__name__}")
        if self.times_run[str(node.target)] > 1:
            raise _RefusedError(f"{node.target!r}, which reads it, runs more than once")
        dimensions = tried[node.all_input_nodes[0]].whole.ndim
        if isinstance(module, nn.Conv2d):
            if module.groups > 1:
                raise _RefusedError(f"the grouped conv {node.target!r} reads it")
            if dimensions != 4:
                raise _RefusedError(f"the conv {node.target!r} does not read it as maps")
            return 1
        if dimensions != 2 or module.in_features % channels:
            raise _RefusedError(
                f"the linear layer {node.target!r} does not read its flattened channels"
            )
        return module.in_features // channels

    def _passed(self, node: fx.Node, tried: Mapping[fx.Node, _Tried], channels: int) -> _Tried:
        """What a node makes of the channels.

        Raises:
            _RefusedError: if the node does not keep each channel to itself.
        """
        module = module_of(node, self.modules)
        if _weights_of(module) > 1:
            values = tried[node.all_input_nodes[0]]
            once = self.times_run[str(node.target)] == 1
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
                raise _RefusedError(f"{node.target!r} normalises by the statistics of each batch")
            if once and values.whole.ndim == 4 and _weights_of(module) == channels:
                return values
        elif node.op != "output" and all(used in tried for used in node.all_input_nodes):
            with suppress(Exception):  # what cannot be tried out is not known to be right
                values = _Tried(*(_run(node, module, tried, which) for which in (0, 1)))
                if _is_prefix(values):
                    return values
        what = str(node.target) if module is not None else _operation(node)
        raise _RefusedError(
            f"{what!r} takes several of its channels together, or something else with them"
        )


def _weights_of(layer: nn.Module | None) -> int:
    """How many channels it has weights for, if it is a layer that can be cut to fewer; else 0."""
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters
    return layer.num_features if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) else 0


def _run(
    node: fx.Node, module: nn.Module | None, tried: Mapping[fx.Node, _Tried], which: int
) -> Any:
    """What the node gives for one of both: the hooks of its module hear nothing of it."""

    def value(used: fx.Node) -> Any:
        found = tried[used][which]
        return found.clone() if isinstance(found, Tensor) else found  # it may be written into

    args, kwargs = in_mode(fx.map_arg((node.args, node.kwargs), value), training=False)
    if module is not None:
        return module.forward(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return cast(Any, node.target)(*args, **kwargs)


def _is_prefix(values: _Tried) -> bool:
    """Whether each channel kept to itself, flattened or not; what is no tensor says nothing."""
    whole, prefix = values
    if not isinstance(whole, Tensor):
        return isinstance(whole, int | float | tuple | torch.dtype | torch.device) and not any(
            isinstance(part, Tensor) for part in (whole if isinstance(whole, tuple) else ())
        )
    n, channels = TRIED_ON[:2]
    each, more = divmod(whole.shape[1], channels)
    expected = whole[:, : each * TRIED_PREFIX]
    return (
        len(whole) == n
        and more == 0
        and (each == 1 or (each > 1 and whole.ndim == 2))
        and prefix.shape == expected.shape
        and torch.allclose(prefix, expected, rtol=1e-4, equal_nan=True)
    )


def _operation(node: fx.Node) -> str:
    if node.op == "output":
        return "the network's output"
    if node.target in SUMS:
        return "a sum"
    return getattr(node.target, "__name__", str(node.target))
