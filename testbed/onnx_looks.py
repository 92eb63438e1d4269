"""ONNX programs of networks that look at an image in steps and stop once they are sure: they skip.

That for single images ends at the first sure answer (`If`). That for batches sends the unsure
alone to the next look (`Compress`), if there are any, and puts their answers back (`ScatterND`).
"""

from collections.abc import Sequence
from typing import Protocol, Self

import onnx

from testbed.looks import Confidence
from testbed.onnx_graph import Graph, logits_of

Carried = tuple[str, ...]
"""What a look leaves to the next one, of each image; the answers (n, classes) come first."""


class Looks(Protocol):
    """A network's looks at images, as parts of a graph."""

    number: int
    """How many looks there are."""

    def always(self, go_on: bool) -> Self:
        """The same with one decision for every image."""
        ...

    def first(self, graph: Graph, images: str) -> Carried:
        """The first look, at normalised images (n, C, H, W)."""
        ...

    def unsure(self, graph: Graph, number: int, carried: Carried) -> tuple[str, Carried]:
        """Which images go on to a look, (n, 1) bool, and what is carried there."""
        ...

    def further(self, graph: Graph, number: int, images: str, carried: Carried) -> Carried:
        """A look, counted from 0, at images that go on to it."""
        ...


class LookPrograms:
    """Writes the programs of looks at images."""

    def __init__(
        self, looks: Looks, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """
        Args:
            shape: (C, H, W).
            mean, std: of each channel, in 0..1 units, as the networks were trained with.
        """
        self._looks, self._shape, self._statistics = looks, shape, (mean, std)

    def always(self, go_on: bool) -> Self:
        """Those of the same looks, with one decision for every image."""
        return type(self)(self._looks.always(go_on), self._shape, *self._statistics)

    def single(self) -> onnx.ModelProto:
        """From one image to its answer.

        Its input `images` is (1, C, H, W) float32 from 0 to 1, its output `logits` (1, classes).
        """
        graph, looks = Graph(), self._looks
        images = graph.normalised(*self._statistics)

        def rest(graph: Graph, number: int, carried: Carried) -> str:
            if number == looks.number:
                return carried[0]
            unsure, carried = looks.unsure(graph, number, carried)
            go_on, stop = graph.inner(), graph.inner()
            after = looks.further(go_on, number, images, carried)
            return graph.choice(unsure, (go_on, rest(go_on, number + 1, after)), (stop, carried[0]))

        graph.add("Identity", rest(graph, 1, looks.first(graph, images)), gives="logits")
        return graph.model([1, *self._shape], logits_of(1))

    def batch(self) -> onnx.ModelProto:
        """As `single`, for images (n, C, H, W) of any number and their answers (n, classes)."""
        graph, looks = Graph(), self._looks
        images = graph.normalised(*self._statistics)
        size = graph.add("Squeeze", graph.add("Shape", "images", end=1), graph.constant([0]))
        all_places = graph.add("Range", graph.constant(0), size, graph.constant(1))

        def rest(
            graph: Graph, number: int, waiting: str, places: str, carried: Carried, answers: str
        ) -> str:
            if number == looks.number:
                return answers
            unsure, carried = looks.unsure(graph, number, carried)
            go_on, stop = graph.inner(), graph.inner()
            rows = go_on.add("Squeeze", unsure, go_on.constant([1]))
            waiting, places, *kept = (
                go_on.add("Compress", each, rows, axis=0) for each in (waiting, places, *carried)
            )
            after = looks.further(go_on, number, waiting, tuple(kept))
            indices = go_on.add("Unsqueeze", places, go_on.constant([1]))
            scattered = go_on.add("ScatterND", answers, indices, after[0])
            last = rest(go_on, number + 1, waiting, places, after, scattered)
            return graph.choice(graph.any(unsure), (go_on, last), (stop, answers))

        first = looks.first(graph, images)
        answers = rest(graph, 1, images, all_places, first, first[0])
        graph.add("Identity", answers, gives="logits")
        return graph.model([None, *self._shape], logits_of(None))


def averaged(graph: Graph, before: str, look: str, weight: float) -> str:
    """`testbed.looks.average`: the answers after a look, log-probabilities (n, classes)."""
    old = graph.add("Mul", before, graph.constant(1 - weight))
    own = graph.add("Mul", look, graph.constant(weight))
    return graph.add("LogSoftmax", graph.add("Add", old, own), axis=1)


def confidence_of(graph: Graph, answers: str, confidence: Confidence) -> str:
    """`testbed.looks.confidence_of`, as (n, 1), of log-probabilities (n, classes)."""
    k = 2 if confidence == "margin" else 1
    values, _ = graph.add_pair("TopK", answers, graph.constant([k]), axis=1)
    probabilities = graph.add("Exp", values)
    if confidence == "max_softmax":
        return probabilities
    first, second = (
        graph.add("Gather", probabilities, graph.constant([place]), axis=1) for place in range(2)
    )
    return graph.add("Sub", first, second)
