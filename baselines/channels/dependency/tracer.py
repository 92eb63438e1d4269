"""Tracer of one forward pass: follows the labels of channels from operation to operation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from baselines.channels.dependency.channel_labels import CONSTANT, Field
from baselines.channels.dependency.records import (
    Count,
    Labels,
    Product,
    Reader,
    Statistic,
    Trace,
    Writer,
)
from baselines.channels.dependency.weights import Weights
from testbed.dispatch_mode import DispatchMode
from testbed.layer_sizes import own_numbers


@dataclass(frozen=True)
class Call:
    """One operation that ran."""

    name: str
    """As in `torch.ops.aten`, without overload and in-place mark."""
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Mapping[str, Any]
    """All arguments by name, defaults included."""
    result: Any

    @property
    def tensors(self) -> list[Tensor]:
        """Its inputs."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def dim(self, name: str = "dim") -> int:
        """The dimension that an argument names, from 0, of its first input."""
        dim: int = self.given[name]
        return dim % max(1, self.tensors[0].ndim)


Rule = Callable[["Tracer", Call], None]
"""Gives the result of an operation its fields."""


class Tracer(DispatchMode):
    """Gives every tensor made while it is active the fields that follow from its inputs'."""

    def __init__(
        self, state: Mapping[str, Tensor], rule_for: Callable[[Any, str], Rule | None]
    ) -> None:
        """Arguments:
        state: the parameters and buffers that the network will run with, by name.
        rule_for: the rule of an operation and its name; None where its parts are to be followed.
        """
        super().__init__()
        self.trace = Trace()
        self.labels = self.trace.labels
        self.used: set[str] = set()
        """Parameters and buffers that an operation took."""
        self._rule_for = rule_for
        self._weights = Weights(state)
        self._fields: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()
        self._static: Any = WeakIdKeyDictionary()
        self._empty: Any = WeakIdKeyDictionary()
        self._running: list[tuple[str, nn.Module, bool]] = []
        self._calls: dict[str, int] = {}
        for name, tensor in state.items():
            self._names[tensor], self._static[tensor] = name, True
            self._label(name, tensor)

    def _label(self, name: str, tensor: Tensor) -> None:
        vectors, fields = [], []
        for dim, size in enumerate(tensor.shape if tensor.is_floating_point() else ()):
            labels = self.labels.new(size)
            vectors.append(labels)
            shape = [1] * tensor.ndim
            shape[dim] = size
            fields.append(torch.from_numpy(labels).reshape(shape))
        self.trace.tensors[name] = vectors
        self._fields[tensor] = self.labels.narrowed(fields)

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Knows meanwhile which module runs."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            def note(module: nn.Module, args: Any) -> None:
                flat = isinstance(module, nn.Linear) and bool(args) and args[0].ndim == 2
                self._running.append((name, module, flat))

            return note

        def leave(*_: Any) -> None:
            self._running.pop()

        with ExitStack() as stack:
            for name, module in network.named_modules():
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    @property
    def module(self) -> str:
        """The name of the module that runs."""
        return self._running[-1][0] if self._running else ""

    @property
    def here(self) -> str:
        """The module that runs, as messages name it."""
        return repr(self.module) if self.module else "the network's own code"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        rule = self._rule_for(func, name)
        if rule is None:  # what it is composed of comes back here
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        arguments = func._schema.arguments
        given = {a.name: a.default_value for a in arguments if a.has_default_value()}
        given |= dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        call = Call(name, func, args, kwargs, given, result)
        self.used.update(self._names[t] for t in call.tensors if t in self._names)
        static = bool(call.tensors) and all(t in self._static for t in call.tensors)
        rule(self, call)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and static:
                self._static[made] = True
        return result

    def is_static(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of parameters and buffers alone."""
        return tensor in self._static

    def fields(self, tensor: Tensor) -> list[Field]:
        """The fields of a tensor, of its number of dimensions."""
        found: list[Field] = self._fields.get(tensor, [])
        return found

    def axis(self, tensor: Tensor, dim: int) -> Labels | None:
        """The labels along a dimension of a tensor; None where it has none there."""
        for labels in self.fields(tensor):
            if labels.shape[dim] > 1:
                found: Labels = labels.movedim(dim, 0).flatten(1)[:, 0].numpy()
                return found
        return None

    def give(self, tensor: Tensor, fields: Sequence[Field]) -> None:
        """From now on these are the fields of `tensor`.

        Where a view makes one dimension of several, only the outermost can lose entries.
        """
        found: list[Field] = []
        for labels in self.labels.narrowed(fields):
            varying = [dim for dim, size in enumerate(labels.shape) if size > 1]
            if _constant(found, *varying):
                found.append(self._resolved(labels))
            else:
                self.labels.fix(labels, f"{self.here} views several dimensions of it as one")
        self._fields[tensor] = found

    def same_as(self, tensor: Tensor, source: Tensor) -> None:
        """`tensor` is what `source` is, in another memory or of another shape."""
        if source in self._names:
            self._names[tensor] = self._names[source]

    def mark_empty(self, part: Tensor, whole: Tensor) -> None:
        """`part` is a view of `whole`, or `whole` itself, which was made to be filled."""
        self._empty[part] = whole

    def made_empty(self, tensor: Tensor) -> Tensor | None:
        """The tensor made to be filled that `tensor` is a view of, if it is one."""
        whole: Tensor | None = self._empty.get(tensor)
        return whole

    def fix(self, tensor: Tensor, reason: str, dims: Sequence[int] | None = None) -> None:
        """Fixes the channels of a tensor, or those that vary along some of its dimensions."""
        for labels in self.fields(tensor):
            if dims is None or any(labels.shape[dim] > 1 for dim in dims):
                self.labels.fix(labels, reason)

    def combine(self, operands: Sequence[tuple[Sequence[Field], Sequence[int]]]) -> list[Field]:
        """Ties the fields of tensors that meet entry by entry, and gives those of the result.

        Args:
            operands: the fields and the sizes of each, in dimensions that are common to all.
        """
        merged: list[Field] = []
        for place, (fields, _) in enumerate(operands):
            for labels in self.labels.narrowed(fields):
                varying = [dim for dim, size in enumerate(labels.shape) if size > 1]
                for other, (theirs, sizes) in enumerate(operands):
                    alone = [d for d in varying if sizes[d] > 1 and _constant(theirs, d)]
                    if other != place and alone:
                        self.labels.fix(labels, f"{self.here} joins it with a tensor of fixed size")
                touching = [each for each in merged if not _constant([each], *varying)]
                for each in touching:
                    self.labels.tie(labels, each)
                merged = [each for each in merged if _constant([each], *varying)]
                merged.append(min([labels, *touching], key=torch.numel))
        return self.labels.narrowed(merged)

    def _resolved(self, labels: Field) -> Field:
        """Ties labels that vary along several dimensions, so that one of them loses channels.

        Code may split channels into heads and the dimensions of each, or into groups. What is left
        must be a whole block again: whole heads go, or else what leaves the finest steps.
        """
        varying = [dim for dim, size in enumerate(labels.shape) if size > 1]
        if len(varying) < 2:
            return labels
        channels = torch.from_numpy(self.labels.channel(labels.numpy()))
        steps = {dim: torch.unique(channels, dim=dim).shape[dim] for dim in varying}
        heads = self._heads()
        # Heads come before the dimensions of each; else the last of equals is it.
        named = [dim for dim in varying if steps[dim] in heads]
        carrier = named[0] if named else max(varying, key=lambda dim: (steps[dim], dim))
        for dim in varying:
            if dim != carrier:
                self.labels.tie(labels, labels.narrow(dim, 0, 1))
        found = self.labels.narrowed([labels])
        return found[0] if found else labels[(slice(0, 1),) * labels.ndim]

    def _heads(self) -> set[int]:
        """The numbers of attention heads that the running module's attributes tell."""
        return {value for name, value in self._attributes() if "heads" in name}

    def _attributes(self) -> list[tuple[str, int]]:
        """The numbers that the running module holds, if it is not one of torch's own layers."""
        return own_numbers(self._running[-1][1]) if self._running else []

    def counts(self, attribute: str, labels: Field) -> None:
        """Notes that an attribute of the running module is in proportion to channels."""
        vector = labels.flatten().numpy()
        self.trace.counts.append(Count(self.module, attribute, vector))

    def has(self, attribute: str) -> bool:
        """Whether the running module has an attribute."""
        return bool(self._running) and hasattr(self._running[-1][1], attribute)

    def count_dimensions(self, tensor: Tensor) -> None:
        """Notes the attributes that count the channels along a dimension of a tensor."""
        for dim, size in enumerate(tensor.shape):
            named = [attribute for attribute, value in self._attributes() if value == size]
            named = [attribute for attribute in named if "heads" in attribute] or named
            labels = self.axis(tensor, dim) if named else None
            if labels is None:
                continue
            channels = self.labels.channel(labels)
            if len(np.unique(channels)) == 1 + np.count_nonzero(np.diff(channels)):
                for attribute in named:  # else a batch of several images is counted as well
                    self.counts(attribute, torch.from_numpy(labels))

    def padding(self, labels: Field, dim: int, width: int) -> Field:
        """Labels of a padding along channels, which an attribute of the module may count."""
        shape = [1] * labels.ndim
        shape[dim] = width
        named = [attribute for attribute, value in self._attributes() if value == width > 0]
        if not named:
            return torch.full(shape, CONSTANT)
        padding = torch.from_numpy(self.labels.new(width)).reshape(shape)
        for attribute in named:
            self.counts(attribute, padding)
        return padding

    def product(
        self,
        operands: Sequence[tuple[Sequence[Field], str]],
        sizes: Mapping[str, int],
        out: str,
        others: int = 1,
    ) -> list[Field]:
        """Fields of a sum of products, such as `nk,km->nm`, with a dimension for each of `out`.

        Args:
            operands: the fields of each, and the letter of each of their dimensions.
            sizes: of each letter's dimension.
            others: multiplications for each combination of these.
        """
        letters = list(sizes)
        aligned = []
        for fields, spelled in operands:
            order = [spelled.index(letter) for letter in letters if letter in spelled]
            shape = [sizes[letter] if letter in spelled else 1 for letter in letters]
            places = [dim for dim, letter in enumerate(letters) if letter not in spelled]
            aligned.append(([_with_ones(each.permute(order), places) for each in fields], shape))
        merged = self.combine(aligned)
        dimensions = tuple(labels.flatten().numpy() for labels in merged)
        self.trace.products.append(Product(prod(sizes.values()) * others, dimensions))
        result = []
        for labels in merged:
            summed = [d for d, letter in enumerate(letters) if letter not in out]
            if _constant([labels], *summed):
                kept = labels[tuple(0 if d in summed else slice(None) for d in range(len(letters)))]
                left = [letter for letter in letters if letter in out]
                result.append(kept.permute([left.index(letter) for letter in out]))
        return result

    def write(self, weight: Tensor, dim: int, passes: bool = False) -> None:
        """Notes that `weight` writes channels, its outputs along `dim`."""
        labels = self.axis(weight, dim)
        if labels is not None:
            parameter = self._names.get(weight)
            lies = self._weights.dimension(weight, dim)
            if lies is not None:
                parameter, dim = lies
                labels = self.trace.tensors[parameter][dim]
            elif parameter is not None:
                channels = self.labels.channel(labels)
                along = self.trace.tensors[parameter]
                dim = next(d for d, each in enumerate(along) if self._stand_for(each, channels))
            flat = bool(self._running) and self._running[-1][2]
            self.trace.writers.append(Writer(self.module, parameter, dim, labels, passes, flat))

    def _stand_for(self, labels: Labels, channels: Labels) -> bool:
        return np.array_equal(self.labels.channel(labels), channels)

    def read(self, activation: Tensor, dim: int, weight: Tensor, of_weight: int) -> None:
        """Notes that a product with `weight` sums over the channels of `activation`."""
        labels = self.axis(activation, dim)
        if labels is not None:
            lies = self._weights.dimension(weight, of_weight)
            self.trace.readers.append(Reader(self.module, lies, labels))

    def take_statistic(self, call: Call, dim: int, labels: Labels) -> None:
        """Notes that an operation looks at several channels together."""
        number = self._calls[call.name] - 1
        self.trace.statistics.append(Statistic(call.name, number, dim, labels))

    def count(self, call: Call) -> None:
        """Counts the calls of an operation that may look at several channels."""
        self._calls[call.name] = self._calls.get(call.name, 0) + 1


def _constant(fields: Sequence[Field], *dims: int) -> bool:
    """Whether no field varies along any of the dimensions."""
    return all(labels.shape[dim] == 1 for labels in fields for dim in dims)


def _with_ones(labels: Field, places: Sequence[int]) -> Field:
    for place in places:
        labels = labels.unsqueeze(place)
    return labels
