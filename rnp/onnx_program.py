"""ONNX program of a network that decides per image, for single images, which really skips.

Each conv's weights are cut, while the program runs, to the prefixes that its decisions ask for, so
that what an image does without is neither read nor multiplied. The decision network is part of the
program. Batches are no use to it: their images would have to agree.
"""

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from onnx import TensorProto
from torch import Tensor, fx, nn
from torch.nn.modules.utils import _pair

from rnp.execution.layers import PrefixBatchNorm2d, PrefixConv2d
from rnp.onnx_decision import q_values
from rnp.runtime_network import RuntimeNetwork
from testbed.inference_form import folded_graph, module_of
from testbed.onnx_graph import CannotSkipError, Graph, Outputs
from testbed.prepared_layers import folded

ELEMENTWISE: dict[Any, str] = {
    nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh", nn.Hardswish: "HardSwish",
    F.relu: "Relu", torch.relu: "Relu", "relu": "Relu", torch.sigmoid: "Sigmoid",
    "sigmoid": "Sigmoid", torch.tanh: "Tanh", "tanh": "Tanh", "contiguous": "Identity",
    operator.add: "Add", operator.iadd: "Add", torch.add: "Add",
}  # fmt: skip


class PrefixPrograms:
    """Writes the program of a network that decides per image, for single images.

    Raises `CannotSkipError` where the network has an operation that is not written here.
    """

    def __init__(
        self,
        network: RuntimeNetwork,
        shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """
        Args:
            shape: (C, H, W).
            mean, std: of each channel, in 0..1 units, as the network was trained with.
        """
        self._network, self._shape, self._statistics = network, shape, (mean, std)

    def always(self, go_on: bool) -> Self:
        """That of the same network with all groups for every image, or the first ones alone."""
        fixed = copy.deepcopy(self._network)
        fixed.decision = fixed.decision.always(fixed.flow.groups - 1 if go_on else 0)
        return type(self)(fixed, self._shape, *self._statistics)

    def single(self) -> onnx.ModelProto:
        """The network from one image to its logits and the actions it took.

        Its input `images` is (1, C, H, W) float32 from 0 to 1, its outputs are `logits`
        (1, classes) and `actions` (decisions,) int64 from 0.
        """
        return _Program(self._network).written(self._shape, *self._statistics)

    def batch(self) -> None:
        """None: the images of a batch would have to agree."""


class _Program:
    """The program while it is written: nodes in order, and the tensors they know."""

    def __init__(self, network: RuntimeNetwork) -> None:
        self._network = network
        self._flow = network.flow
        self._modules: Mapping[str, nn.Module] = dict(network.named_modules())
        self._graph = folded_graph(self._flow.graph, self._modules, PrefixConv2d, PrefixBatchNorm2d)
        self._onnx = Graph()
        self._add, self._constant = self._onnx.add, self._onnx.constant
        self._values: dict[fx.Node, str] = {}
        self._counts: list[str] = []  # of each decision, how many channels it computes, (1,) int64
        self._actions: list[str] = []
        self._state: str | None = None

    def written(
        self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
    ) -> onnx.ModelProto:
        images, *nodes, output = self._graph.nodes
        self._values[images] = self._onnx.normalised(mean, std)
        for node in nodes:
            module = module_of(node, self._modules)
            write = self._conv if isinstance(module, nn.Conv2d) else self._other
            self._values[node] = write(node, module)
        self._add("Identity", self._values[output.all_input_nodes[0]], gives="logits")
        self._add("Concat", *self._actions, gives="actions", axis=0)
        outputs: Outputs = {
            "logits": (TensorProto.FLOAT, [1, None]),
            "actions": (TensorProto.INT64, [len(self._actions)]),
        }
        return self._onnx.model([1, *shape], outputs)

    def _conv(self, node: fx.Node, conv: Any) -> str:
        name = str(node.target)
        images = self._values[node.all_input_nodes[0]]
        read, step = self._flow.step_read_by.get(name), self._flow.step_of.get(name)
        if step is not None:
            self._decide(step, images, read)
        weight, bias = conv.weight, conv.bias
        norm: Any = self._modules[node.meta["norm"]] if "norm" in node.meta else None
        mixed = isinstance(norm, PrefixBatchNorm2d)  # then its scale is known once images come
        if norm is not None and not mixed:
            weight, bias = folded(weight, bias, norm)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise _unknown(f"{name}, a conv whose padding is not of plain zeros")
        inputs = [images, self._cut(weight, self._count(step), self._count(read))]
        if bias is not None:
            inputs.append(self._cut(bias, self._count(step)))
        computed = self._add(
            "Conv",
            *inputs,
            strides=list(conv.stride),
            pads=[*conv.padding, *conv.padding],
            dilations=list(conv.dilation),
            group=conv.groups,
        )
        if mixed:
            computed = self._norm(node.meta["norm"], computed, norm)
        return self._add("Relu", computed) if "relu" in node.meta else computed

    def _decide(self, step: int, images: str, read: int | None) -> None:
        """The decision network's step, and how many channels it lets its conv compute."""
        decision = self._network.decision
        features = self._add("ReduceMean", images, self._constant([2, 3]), keepdims=0)
        if read is not None:  # channels that were not computed are zero to the decision network
            missing = self._add("Sub", self._constant([decision.inputs[step]]), self._counts[read])
            before = self._constant([0, 0, 0])
            pads = self._add("Concat", before, missing, axis=0)
            features = self._add("Pad", features, pads)
        values, self._state = q_values(self._onnx, decision, step, features, self._state)
        action = self._add("ArgMax", values, axis=1, keepdims=0)  # (1,)
        self._actions.append(action)
        prefixes = self._constant(self._flow.convs[step].prefixes)
        self._counts.append(self._add("Gather", prefixes, action))

    def _other(self, node: fx.Node, module: nn.Module | None) -> str:
        values = [self._values[used] for used in node.all_input_nodes]
        asked: Any = node.args[0] if node.target is operator.getitem else node
        if isinstance(asked, fx.Node) and _asks_batch_size(asked):
            return ""  # it is 1, and nothing but a reshape that keeps it asks
        if isinstance(module, nn.Linear):
            read = self._flow.step_read_by.get(str(node.target))
            inputs = self._count(read)
            if read is not None:
                each = self._flow.convs[read].readers[str(node.target)]  # of one channel
                inputs = self._add("Mul", self._counts[read], self._constant([each]))
            return self._linear(values[0], module.weight, module.bias, inputs)
        if isinstance(module, nn.BatchNorm2d | PrefixBatchNorm2d):
            return self._norm(str(node.target), values[0], module)
        if isinstance(module, nn.MaxPool2d):
            return self._add(
                "MaxPool", values[0], **_window(module), dilations=_pair(module.dilation)
            )
        if isinstance(module, nn.AvgPool2d) and module.divisor_override is None:
            counted = int(module.count_include_pad)
            return self._add("AveragePool", values[0], **_window(module), count_include_pad=counted)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            return self._add("GlobalAveragePool", values[0])
        if _flattens(node, module):
            return self._add("Flatten", values[0], axis=1)
        if node.target in (torch.mean, "mean"):
            axes: Any = node.kwargs["dim"] if "dim" in node.kwargs else node.args[1]
            kept = int(bool(node.kwargs.get("keepdim", False) or len(node.args) > 2))
            axes = [axes] if isinstance(axes, int) else axes
            return self._add("ReduceMean", values[0], self._constant(axes), keepdims=kept)
        kind = ELEMENTWISE.get(type(module) if module else node.target)
        if kind is None or (kind == "Add" and len(values) != 2):
            what = f"{node.target} ({type(module).__name__})" if module else str(node.target)
            raise _unknown(what)
        return self._add(kind, *values)

    def _count(self, step: int | None) -> str | None:
        """How many channels a decision lets be computed, if it depends on one."""
        return None if step is None else self._counts[step]

    def _norm(self, name: str, value: str, norm: nn.BatchNorm2d | PrefixBatchNorm2d) -> str:
        """A batch norm that could not be folded into a conv."""
        count, step = self._count(self._flow.step_of_outputs.get(name)), self._flow.norms.get(name)
        one = torch.ones(norm.num_features, 1, 1, 1)
        norms: Any = [norm]
        if isinstance(norm, PrefixBatchNorm2d):
            norms = [norm.at(action) for action in range(self._flow.groups)]
        sides = []
        for parts in zip(*(folded(one, None, each) for each in norms), strict=True):
            side = self._constant(torch.stack(parts).reshape(len(norms), -1, 1, 1))
            if step is not None:
                side = self._add("Gather", side, self._actions[step])
            sides.append(self._cut(side, None, count))
        return self._add("Add", self._add("Mul", value, sides[0]), sides[1])

    def _cut(self, tensor: Tensor | str, *counts: str | None) -> str:
        """A value or a constant, cut along its axes to as many as these; None for all."""
        cut = {axis: count for axis, count in enumerate(counts) if count is not None}
        whole = tensor if isinstance(tensor, str) else self._constant(tensor)
        if not cut:
            return whole
        ends, *more = cut.values()
        if more:
            ends = self._add("Concat", ends, *more, axis=0)
        return self._add(
            "Slice", whole, self._constant([0] * len(cut)), ends, self._constant([*cut])
        )

    def _linear(
        self, value: str, weight: Tensor, bias: Tensor | None, inputs: str | None = None
    ) -> str:
        """A linear layer, of its first inputs alone where their number is given."""
        biases = [] if bias is None else [self._constant(bias)]
        return self._add("Gemm", value, self._cut(weight, None, inputs), *biases, transB=1)


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it makes (n, ...) flat: (n, C). `module` is what it calls, if that is a module."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in (torch.flatten, "flatten"):
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
    return node.target in (torch.reshape, "view", "reshape") and _keeps_only_the_batch(node)


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
    return isinstance(of, fx.Node) and _asks_batch_size(of)


def _asks_batch_size(node: fx.Node) -> bool:
    """Whether it is `x.size(0)`, or the `x.shape` of `x.shape[0]`."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    return False


def _window(pool: Any) -> dict[str, Any]:
    """What ONNX's poolings have in common."""
    return {
        "kernel_shape": _pair(pool.kernel_size),
        "strides": _pair(pool.stride),
        "pads": _pair(pool.padding) * 2,
        "ceil_mode": int(pool.ceil_mode),
    }


def _unknown(what: str) -> CannotSkipError:
    return CannotSkipError(
        f"it has {what}; such a program knows convs, linear layers, batch norms, common "
        "activations, pooling, flattening and sums"
    )
