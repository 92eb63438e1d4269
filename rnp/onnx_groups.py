"""A grouped network's looks as parts of ONNX programs."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from rnp.grouped_network import GO_ON, STOP, GroupedNetwork
from rnp.onnx_decision import q_values
from testbed.onnx_graph import Graph, translated
from testbed.onnx_looks import Carried, averaged, confidence_of


class GroupLooks:
    """Groups, for `LookPrograms`. Each group is translated once.

    Carried from group to group are the answers, what is decided from, and the recurrent state.
    """

    def __init__(self, network: GroupedNetwork, shape: Sequence[int]) -> None:
        """
        Args:
            shape: (C, H, W).
        """
        self.number = network.n_groups
        self._decision, self._weights = network.decision, network.weights.tolist()
        black = torch.zeros(2, *shape)
        both = zip(network.bodies, network.classifiers, strict=True)
        self._models = [translated(_Group(*parts), black) for parts in both]

    def always(self, go_on: bool) -> Self:
        """The same network with one decision for every image, the work for it included."""
        other = copy.copy(self)
        other._decision = self._decision.always(GO_ON if go_on else STOP)
        return other

    def first(self, graph: Graph, images: str) -> Carried:
        """See `Looks`."""
        features, look = self._look(graph, 0, images)
        return look, self._observed(graph, features, look)

    def unsure(self, graph: Graph, number: int, carried: Carried) -> tuple[str, Carried]:
        """See `Looks`."""
        answers, observed, *state = carried
        values, after = q_values(
            graph, self._decision, number - 1, observed, state[0] if state else None
        )
        action = graph.add("ArgMax", values, axis=1)
        goes_on = graph.add("Equal", action, graph.constant(GO_ON))
        return goes_on, (answers, after)

    def further(self, graph: Graph, number: int, images: str, carried: Carried) -> Carried:
        """See `Looks`."""
        before, state = carried
        features, look = self._look(graph, number, images)
        answers = averaged(graph, before, look, self._weights[number])
        return answers, self._observed(graph, features, answers), state

    def _look(self, graph: Graph, number: int, images: str) -> tuple[str, str]:
        """What the group's classifier reads, and its log-probabilities."""
        features, logits = graph.inlined(self._models[number], images)
        return features, graph.add("LogSoftmax", logits, axis=1)

    def _observed(self, graph: Graph, features: str, answers: str) -> str:
        """`rnp.grouped_network.observed`."""
        return graph.add("Concat", features, confidence_of(graph, answers, "margin"), axis=1)


class _Group(nn.Module):
    """What a group's classifier reads, (n, features), and its logits, (n, classes)."""

    def __init__(self, body: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.body, self.classifier = body, classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return features, self.classifier(features)
