"""Removal of channels: the smaller network, and the whole one with the same channels at zero."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from baselines.channels.dependency.records import Trace
from baselines.channels.dependency.trace import network_tensors, plain_run
from testbed.attention import allow_fewer_heads
from testbed.dispatch_mode import DispatchMode
from testbed.layer_sizes import resize

Lost = NDArray[np.bool_]
"""Whether the channel of each label of a trace goes."""


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a network's modules around the same tensors, whose attention can lose heads."""
    tensors = [*model.parameters(), *model.buffers()]
    network = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    allow_fewer_heads(network)
    return network


def without(network: nn.Module, found: Trace, lost: Lost, *, blind: bool = False) -> nn.Module:
    """A copy of `network` without channels, their number right in every layer.

    Args:
        network: that `found` is the trace of; left unchanged.
        blind: whether its tensors have shapes only.
    """
    memo: dict[int, Any] = {}
    smaller: dict[str, Tensor] = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        new = tensor.detach().to("meta") if blind else tensor.detach()
        for dim, labels in enumerate(found.tensors[name]):
            gone = lost[labels]
            if gone.any():
                kept = torch.from_numpy((~gone).nonzero()[0]).to(new.device)
                new = new.index_select(dim, kept)
        if new.shape != tensor.shape:
            smaller[name] = new
            memo[id(tensor)] = tensor  # `resize` puts the smaller one in its place
            continue
        new = new if blind else new.clone()
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
    result = copy.deepcopy(network, memo)
    resize(result, smaller, _counted(network, found, lost))
    return result


def _counted(network: nn.Module, found: Trace, lost: Lost) -> dict[str, dict[str, Any]]:
    """Layer -> its attributes that count channels, as they are without the lost ones."""
    counted: dict[str, dict[str, Any]] = {}
    for count in found.counts:
        kept = 1 - lost[count.labels].mean()
        module = network.get_submodule(count.module)
        old = getattr(module, count.attribute, None)
        if kept == 1 or old is None:
            continue
        new: Any = round(old * kept) if isinstance(old, int) else [*old[:-1], round(old[-1] * kept)]
        counted.setdefault(count.module, {})[count.attribute] = new
    return counted


def masked(network: nn.Module, found: Trace, lost: Lost, images: Tensor) -> Any:
    """What the whole network gives with the lost channels at zero in all its parameters.

    Means, layer norms and their like leave those channels out, as if they had never been.

    Args:
        network: that `found` is the trace of; left unchanged.
    """
    state = network_tensors(network)
    for name, tensor in state.items():
        for dim, labels in enumerate(found.tensors[name]):
            gone = torch.from_numpy(lost[labels].nonzero()[0])
            if len(gone):
                state[name] = state[name].index_fill(dim, gone.to(tensor.device), 0)
    with plain_run(network), _KeptStatistics(found, lost):
        return functional_call(network, state, (images,))


class _KeptStatistics(DispatchMode):
    """Leaves lost channels out of every operation that looks at several channels together."""

    def __init__(self, found: Trace, lost: Lost) -> None:
        super().__init__()
        self._kept = {}
        for each in found.statistics:
            gone = lost[each.labels]
            if gone.any():
                kept = torch.from_numpy((~gone).nonzero()[0])
                self._kept[each.operation, each.number] = each.dim, kept
        self._watched = {each.operation for each in found.statistics}
        self._calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if name == "_weight_norm_interface":  # a weight of length zero has no direction
            weight, *others = func(*args, **kwargs)
            return weight.nan_to_num(), *others
        number = self._calls.get(name, 0)
        if name in self._watched:
            self._calls[name] = number + 1
        if (name, number) not in self._kept:
            return func(*args, **kwargs)
        dim, kept = self._kept[name, number]
        x = args[0]
        kept = kept.to(x.device)
        part = x.index_select(dim, kept)
        if name == "native_layer_norm":
            shape = [*args[1][:-1], len(kept)]
            vectors = [None if v is None else v.index_select(-1, kept) for v in args[2:4]]
            normed, *others = func(part, shape, *vectors, *args[4:])
            return torch.zeros_like(x).index_copy(dim, kept, normed), *others
        if name == "native_group_norm":
            n, channels, positions, groups = args[3], len(kept), args[5], args[6]
            vectors = [None if v is None else v.index_select(0, kept) for v in args[1:3]]
            normed, *others = func(part, *vectors, n, channels, positions, groups, *args[7:])
            return torch.zeros_like(x).index_copy(dim, kept, normed), *others
        return func(part, *args[1:], **kwargs)
