"""A cascade's looks as parts of ONNX programs."""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from baselines.runtime.cascade_network import CascadeNetwork
from testbed.onnx_graph import CannotSkipError, Graph, translated
from testbed.onnx_looks import Carried, averaged, confidence_of


class CascadeLooks:
    """A cascade, for `LookPrograms`. Each of its networks is translated once."""

    def __init__(self, network: CascadeNetwork, shape: Sequence[int]) -> None:
        """
        Args:
            shape: (C, H, W).

        Raises:
            CannotSkipError: if the cascade decides by draws.
        """
        if network.confidence == "drawn":
            raise CannotSkipError(
                "a cascade at random draws by the bits of an image, which ONNX cannot read"
            )
        self.number = network.looks
        self._confidence = network.confidence
        self._thresholds, self._weights = network.thresholds.tolist(), network.weights.tolist()
        black = torch.zeros(2, *shape)
        self._models = [translated(each, black) for each in network.networks]

    def always(self, go_on: bool) -> Self:
        """The same cascade with every image sure at once, or never."""
        other = copy.copy(self)
        other._thresholds = [np.inf if go_on else -np.inf] * len(self._thresholds)
        return other

    def first(self, graph: Graph, images: str) -> Carried:
        """See `Looks`."""
        return (self._look(graph, 0, images),)

    def unsure(self, graph: Graph, number: int, carried: Carried) -> tuple[str, Carried]:
        """See `Looks`."""
        confidence = confidence_of(graph, carried[0], self._confidence)
        threshold = graph.constant(self._thresholds[number - 1])
        return graph.add("Less", confidence, threshold), carried

    def further(self, graph: Graph, number: int, images: str, carried: Carried) -> Carried:
        """See `Looks`."""
        look = self._look(graph, number, images)
        return (averaged(graph, carried[0], look, self._weights[number]),)

    def _look(self, graph: Graph, number: int, images: str) -> str:
        """Log-probabilities."""
        last = len(self._models) - 1
        if number > last:  # at the mirrored image
            ends = (graph.constant([each]) for each in (-1, np.iinfo(np.int64).min, -1, -1))
            first, end, axis, step = ends
            images = graph.add("Slice", images, first, end, axis, step)
        (logits,) = graph.inlined(self._models[min(number, last)], images)
        return graph.add("LogSoftmax", logits, axis=1)
