"""ONNX programs of a cascade that really skip: one for single images, one for batches.

That for single images stops at the first sure answer (`If`). That for batches sends the unsure
alone to the next look (`Compress`) and puts their answers back (`ScatterND`).
"""

import warnings
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from torch import nn

from baselines.runtime.cascade_network import CascadeNetwork

IR_VERSION = 10
BATCH = {0: torch.export.Dim("batch", min=1)}


class CascadePrograms:
    """Writes the programs of a cascade. Each of its networks is translated once."""

    def __init__(
        self,
        network: CascadeNetwork,
        shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """
        Args:
            shape: (C, H, W).
            mean, std: of each channel, in 0..1 units, as the networks were trained with.

        Raises:
            ValueError: if the cascade decides by draws, or a network cannot be written.
        """
        if network.confidence == "drawn":
            raise ValueError(
                "No ONNX program can be written of a cascade at random: it draws by the bits of an "
                "image's pixels, for which ONNX has no operation."
            )
        self._network, self._shape, self._statistics = network, shape, (mean, std)
        self._models = [_exported(each, shape) for each in network.networks]

    def single(self, threshold: float | None = None) -> onnx.ModelProto:
        """From one image to its answer.

        Its input `images` is (1, C, H, W) float32 from 0 to 1, its output `logits` (1, classes).

        Args:
            threshold: in place of each of the cascade's own.
        """
        program = _Program(self._network, self._models, threshold)
        graph = program.graph
        images = graph.normalised(*self._statistics)
        answers = program.look(graph, 0, images)
        program.further(graph, 1, images, answers, gives="logits")
        return graph.model(program.opsets, [1, *self._shape], [1, None])

    def batch(self, threshold: float | None = None) -> onnx.ModelProto:
        """As `single`, for images (n, C, H, W) of any number and their answers (n, classes)."""
        program = _Program(self._network, self._models, threshold)
        graph = program.graph
        waiting = graph.normalised(*self._statistics)
        current = answers = program.look(graph, 0, waiting)
        size = graph.add("Shape", "images", end=1)
        scalar = graph.add("Squeeze", size, graph.constant([0]))
        places = graph.add("Range", graph.constant(0), scalar, graph.constant(1))
        for number in range(1, self._network.looks):
            unsure = program.unsure(graph, number, current)
            unsure = graph.add("Squeeze", unsure, graph.constant([1]))
            waiting, current, places = (
                graph.add("Compress", each, unsure, axis=0) for each in (waiting, current, places)
            )
            current = program.averaged(graph, number, waiting, current)
            rows = graph.add("Unsqueeze", places, graph.constant([1]))
            answers = graph.add("ScatterND", answers, rows, current)
        graph.add("Identity", answers, gives="logits")
        return graph.model(program.opsets, [None, *self._shape], [None, None])


class _Graph:
    """A graph, or one inside of another, while it is written."""

    def __init__(self, names: Any) -> None:
        self._names = names
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def inner(self) -> "_Graph":
        """A graph for a branch; it may use what this one has computed by then."""
        return _Graph(self._names)

    def add(self, operation: str, *takes: str, gives: str = "", **attributes: Any) -> str:
        name = gives or self.name()
        self.nodes.append(helper.make_node(operation, list(takes), [name], **attributes))
        return name

    def name(self) -> str:
        return f"v{next(self._names)}"

    def constant(self, value: Any) -> str:
        """int64 of whole numbers, float32 of others."""
        array = np.asarray(value)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        name = self.name()
        self.constants.append(numpy_helper.from_array(array.astype(kind), name))
        return name

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> str:
        shape = (-1, 1, 1)
        centred = self.add("Sub", "images", self.constant(np.reshape(mean, shape)))
        return self.add("Div", centred, self.constant(np.reshape(std, shape)))

    def branch(self, output: str) -> GraphProto:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(self.nodes, self.name(), [], [value], self.constants)

    def model(
        self, opsets: Sequence[Any], images: Sequence[int | None], logits: Sequence[int | None]
    ) -> onnx.ModelProto:
        takes = helper.make_tensor_value_info("images", TensorProto.FLOAT, images)
        gives = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)
        graph = helper.make_graph(self.nodes, "cascade", [takes], [gives], self.constants)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


class _Program:
    """The parts that both programs are written of."""

    def __init__(
        self,
        network: CascadeNetwork,
        models: Sequence[onnx.ModelProto],
        threshold: float | None,
    ) -> None:
        self._network, self._models, self._threshold = network, models, threshold
        self.opsets = models[0].opset_import
        self.graph = _Graph(count())

    def look(self, graph: _Graph, number: int, images: str) -> str:
        """Log-probabilities of a look, with a network's whole graph inlined."""
        last = len(self._models) - 1
        if number > last:
            ends = (graph.constant([each]) for each in (-1, np.iinfo(np.int64).min, -1, -1))
            first, end, axis, step = ends
            images = graph.add("Slice", images, first, end, axis, step)
        model = self._models[min(number, last)]
        names = {model.graph.input[0].name: images, "": ""}
        for constant in model.graph.initializer:
            names[constant.name] = graph.name()
            copied = TensorProto.FromString(constant.SerializeToString())
            copied.name = names[constant.name]
            graph.constants.append(copied)
        for node in model.graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ValueError(
                    f"No ONNX program that skips can be written of this cascade: a stage has "
                    f"{node.op_type}, which has graphs of its own."
                )
            copied_node = NodeProto.FromString(node.SerializeToString())
            names |= {name: graph.name() for name in node.output if name}
            copied_node.input[:] = [names[name] for name in node.input]
            copied_node.output[:] = [names[name] for name in node.output]
            copied_node.name = graph.name()
            graph.nodes.append(copied_node)
        return graph.add("LogSoftmax", names[model.graph.output[0].name], axis=1)

    def unsure(self, graph: _Graph, number: int, answers: str) -> str:
        """(n, 1) bool: whose confidence is below the threshold before a look."""
        k = 2 if self._network.confidence == "margin" else 1
        values, _ = graph.name(), graph.name()
        topk = helper.make_node("TopK", [answers, graph.constant([k])], [values, _], axis=1)
        graph.nodes.append(topk)
        confidence = graph.add("Exp", values)
        if k == 2:
            first, second = (
                graph.add("Gather", confidence, graph.constant([place]), axis=1)
                for place in range(2)
            )
            confidence = graph.add("Sub", first, second)
        threshold = self._threshold
        if threshold is None:
            threshold = self._network.thresholds[number - 1].item()
        return graph.add("Less", confidence, graph.constant(threshold))

    def averaged(self, graph: _Graph, number: int, images: str, answers: str) -> str:
        """The answers after a look at images, from those before it."""
        weight = self._network.weights[number].item()
        look = self.look(graph, number, images)
        before = graph.add("Mul", answers, graph.constant(1 - weight))
        own = graph.add("Mul", look, graph.constant(weight))
        return graph.add("LogSoftmax", graph.add("Add", before, own), axis=1)

    def further(self, graph: _Graph, number: int, images: str, answers: str, gives: str) -> None:
        """All looks from a number on, each inside of the one before."""
        if number == self._network.looks:
            graph.add("Identity", answers, gives=gives)
            return
        go_on, stop = graph.inner(), graph.inner()
        after = self.averaged(go_on, number, images, answers)
        ends = graph.name(), graph.name()
        self.further(go_on, number + 1, images, after, gives=ends[0])
        stop.add("Identity", answers, gives=ends[1])
        shape = graph.constant(np.zeros(0, dtype=np.int64))
        unsure = graph.add("Reshape", self.unsure(graph, number, answers), shape)
        then, otherwise = go_on.branch(ends[0]), stop.branch(ends[1])
        graph.add("If", unsure, gives=gives, then_branch=then, else_branch=otherwise)


def _exported(network: nn.Module, shape: Sequence[int]) -> onnx.ModelProto:
    """A network from images (n, C, H, W) to logits, in torch's own translation."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts, about one another
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, *shape),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(BATCH,),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    return inline_local_functions(model) if model.functions else model
