"""ONNX programs of a routed network, which really skip blocks: for single images and for batches.

That for single images runs a block's branch or not (`If`). That for batches runs it for those
alone that take it (`Compress`) and puts what it makes of them back (`ScatterND`).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Self

import onnx
import torch

from rnp.execution.decision import DecisionNetwork
from rnp.execution.routed_run import COMPUTE, SKIP
from rnp.onnx_decision import q_values
from rnp.routed_network import NoPiecesError, Pieces, RoutedNetwork
from testbed.onnx_graph import CannotSkipError, Graph, logits_of, translated

Block = Callable[[Graph, onnx.ModelProto, str, str], str]
"""Writes a block, by its branch, its input and the actions (n, 1): its output."""


class RoutePrograms:
    """Writes the programs of a routed network. Each piece of it is translated once."""

    def __init__(
        self,
        network: RoutedNetwork,
        shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """
        Args:
            shape: (C, H, W).
            mean, std: of each channel, in 0..1 units, as the network was trained with.

        Raises:
            CannotSkipError: if more than one value passes from block to block.
        """
        self._shape, self._statistics = shape, (mean, std)
        self._decision: DecisionNetwork = network.decision
        self._steps: list[tuple[onnx.ModelProto, onnx.ModelProto, int]] = []
        try:
            pieces, value = Pieces(network), torch.zeros(2, *shape)
        except NoPiecesError:
            raise CannotSkipError("more than one value passes from block to block") from None
        with torch.no_grad():
            for before, branch in zip(pieces.before, pieces.branches, strict=True):
                first = translated(before, value)
                value = before(value)
                self._steps.append((first, translated(branch, value), value.ndim))
                value = branch(value)
            self._last = translated(pieces.last, value)

    def always(self, compute: bool) -> Self:
        """The same network with one decision for every image, the work for it included."""
        other = copy.copy(self)
        other._decision = self._decision.always(COMPUTE if compute else SKIP)
        return other

    def single(self) -> onnx.ModelProto:
        """From one image to its answer.

        Its input `images` is (1, C, H, W) float32 from 0 to 1, its output `logits` (1, classes).
        """
        return self._written(_either, 1)

    def batch(self) -> onnx.ModelProto:
        """As `single`, for images (n, C, H, W) of any number and their answers (n, classes)."""
        return self._written(_for_those_that_take_it, None)

    def _written(self, block: Block, n: int | None) -> onnx.ModelProto:
        graph = Graph()
        value, state = graph.normalised(*self._statistics), None
        for step, (before, branch, dimensions) in enumerate(self._steps):
            (value,) = graph.inlined(before, value)
            places = graph.constant([*range(2, dimensions)])
            pooled = graph.add("ReduceMean", value, places, keepdims=0)
            values, state = q_values(graph, self._decision, step, pooled, state)
            value = block(graph, branch, value, graph.add("ArgMax", values, axis=1))
        (logits,) = graph.inlined(self._last, value)
        graph.add("Identity", logits, gives="logits")
        return graph.model([n, *self._shape], logits_of(n))


def _either(graph: Graph, branch: onnx.ModelProto, value: str, actions: str) -> str:
    taken, skipped = graph.inner(), graph.inner()
    (computed,) = taken.inlined(branch, value)
    takes = graph.add("Equal", actions, graph.constant(COMPUTE))
    return graph.choice(takes, (taken, computed), (skipped, value))


def _for_those_that_take_it(graph: Graph, branch: onnx.ModelProto, value: str, actions: str) -> str:
    takes = graph.add("Equal", actions, graph.constant(COMPUTE))
    some, none = graph.inner(), graph.inner()
    rows = some.add("Squeeze", takes, some.constant([1]))
    (computed,) = some.inlined(branch, some.add("Compress", value, rows, axis=0))
    places = some.add("Transpose", some.add("NonZero", rows), perm=[1, 0])
    scattered = some.add("ScatterND", value, places, computed)
    return graph.choice(graph.any(takes), (some, scattered), (none, value))
