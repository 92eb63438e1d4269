"""ONNX graphs, written node by node, with networks in torch's own translation inside of them."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Self

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from testbed.cause import first_cause

IR_VERSION, OPSET = 10, 18
BATCH = {0: torch.export.Dim("batch", min=1)}

Outputs = dict[str, tuple[int, Sequence[int | None]]]
"""Of a program: by their names, element type and shape."""


class CannotSkipError(ValueError):
    """No program that skips can be written of a network. Its text says why."""


class Graph:
    """A graph, or one inside of another, while it is written. Values have names."""

    def __init__(self, outer: Self | None = None) -> None:
        self._names: Iterator[int] = count() if outer is None else outer._names
        self._opsets: dict[str, int] = {} if outer is None else outer._opsets
        """Domain -> version, of the models that were inlined."""
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def inner(self) -> Self:
        """A graph for a branch; it may use what this one has computed by then."""
        return type(self)(self)

    def add(self, operation: str, *takes: str, gives: str = "", **attributes: Any) -> str:
        """The one value that an operation gives; `gives` names it."""
        name = gives or self._name()
        self._nodes.append(helper.make_node(operation, list(takes), [name], **attributes))
        return name

    def add_pair(self, operation: str, *takes: str, **attributes: Any) -> tuple[str, str]:
        """Both values of an operation that gives two."""
        names = self._name(), self._name()
        self._nodes.append(helper.make_node(operation, list(takes), list(names), **attributes))
        return names

    def constant(self, value: Any) -> str:
        """int64 of whole numbers, float32 of others."""
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        name = self._name()
        self._constants.append(numpy_helper.from_array(array.astype(kind), name))
        return name

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """The model's images (see `model`), as networks take them."""
        shape = (-1, 1, 1)
        centred = self.add("Sub", "images", self.constant(np.reshape(mean, shape)))
        return self.add("Div", centred, self.constant(np.reshape(std, shape)))

    def inlined(self, model: onnx.ModelProto, value: str) -> list[str]:
        """What a model of one input makes of a value, with its whole graph written here.

        Raises:
            CannotSkipError: if an operation of it has graphs of its own, or it is of another
                version of ONNX than what was inlined before.
        """
        for opset in model.opset_import:
            if self._opsets.setdefault(opset.domain, opset.version) != opset.version:
                raise CannotSkipError("parts of it are translated to different versions of ONNX")
        names = {model.graph.input[0].name: value, "": ""}
        for constant in model.graph.initializer:
            names[constant.name] = self._name()
            copied = TensorProto.FromString(constant.SerializeToString())
            copied.name = names[constant.name]
            self._constants.append(copied)
        for node in model.graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise CannotSkipError(
                    f"a part of it has {node.op_type}, which has graphs of its own"
                )
            copied_node = NodeProto.FromString(node.SerializeToString())
            copied_node.input[:] = [names[name] for name in node.input]
            # Afterwards: of a network that gives what it takes, both have one name.
            names |= {name: self._name() for name in node.output if name}
            copied_node.output[:] = [names[name] for name in node.output]
            copied_node.name = self._name()
            self._nodes.append(copied_node)
        return [names[each.name] for each in model.graph.output]

    def choice(self, condition: str, then: tuple[Self, str], otherwise: tuple[Self, str]) -> str:
        """A value of one of two inner graphs; the other one does not run.

        Args:
            condition: one bool, of any shape.
            then, otherwise: an inner graph and the value it gives.
        """
        scalar = self.add("Reshape", condition, self.constant(np.zeros(0, dtype=np.int64)))
        branches = [graph._branch(value) for graph, value in (then, otherwise)]
        return self.add("If", scalar, then_branch=branches[0], else_branch=branches[1])

    def any(self, rows: str) -> str:
        """Whether one of some bools is true."""
        numbers = self.add("Cast", rows, to=TensorProto.INT64)
        return self.add("Cast", self.add("ReduceMax", numbers, keepdims=0), to=TensorProto.BOOL)

    def model(self, shape: Sequence[int | None], outputs: Outputs) -> onnx.ModelProto:
        """The complete, checked program, whose input is `images`.

        Args:
            shape: of the images, (n, C, H, W).

        Raises:
            CannotSkipError: if it is no valid program.
        """
        takes = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
        gives = [helper.make_tensor_value_info(name, *each) for name, each in outputs.items()]
        graph = helper.make_graph(self._nodes, "skips", [takes], gives, self._constants)
        opsets = [helper.make_opsetid(*each) for each in (self._opsets or {"": OPSET}).items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise CannotSkipError(f"its program would not be valid: {error}") from error
        return model

    def _name(self) -> str:
        return f"v{next(self._names)}"

    def _branch(self, value: str) -> GraphProto:
        """This graph as a branch. What it gives is its own, even if it is a value from outside."""
        given = self.add("Identity", value)
        output = helper.make_tensor_value_info(given, TensorProto.FLOAT, None)
        return helper.make_graph(self._nodes, self._name(), [], [output], self._constants)


def logits_of(n: int | None) -> Outputs:
    """The one output `logits`, (n, classes); None for any n."""
    return {"logits": (TensorProto.FLOAT, [n, None])}


def translated(network: nn.Module, example: Tensor) -> onnx.ModelProto:
    """A network in torch's own translation, for batches of any size.

    Args:
        example: (2, ...), what it takes.

    Raises:
        CannotSkipError: if it has an operation that has no translation.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts, about one another
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                input_names=["value"],
                dynamic_shapes=(BATCH,),
                verbose=False,
            )
    except Exception as error:  # of many types, none of them documented
        raise CannotSkipError(
            f"torch's ONNX exporter does not take an operation of it ({first_cause(error)})"
        ) from error
    assert program is not None
    model = program.model_proto
    return inline_local_functions(model) if model.functions else model
