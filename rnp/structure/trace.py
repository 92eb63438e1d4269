"""Traced graph of a network, taken with `torch.fx` in evaluation mode whatever its mode is."""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn

SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class OwnMode(int):
    """Stands in a trace for the mode of the network: false, as it is taken in evaluation mode."""


def in_mode(arguments: Any, training: bool) -> Any:
    """An operation's arguments, with the mode that the network is in now."""
    return fx.node.map_aggregate(
        arguments, lambda value: training if isinstance(value, OwnMode) else value
    )


def traced(model: nn.Module) -> fx.Graph:
    """The operations of a network in evaluation mode; what only training does is left out.

    Functions that are told the mode get an `OwnMode`. A tensor that its forward makes of numbers
    becomes an attribute of the network (`_tensor_constant0`).

    Args:
        model: in evaluation mode.

    Raises:
        ValueError: if it cannot be traced, or does not make one tensor of one.
    """
    for module in model.modules():
        module.training = OwnMode()  # type: ignore[assignment]
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # a user's forward may do anything with a traced value
        raise ValueError(
            f"Cannot follow the channels of {type(model).__name__}: tracing it with torch.fx "
            f"raises {type(error).__name__}: {error}. Its forward must not depend on the values "
            "of tensors."
        ) from error
    finally:
        model.eval()
    images, *others = [node for node in graph.nodes if node.op == "placeholder"]
    output = list(graph.nodes)[-1].args[0]
    if others or not isinstance(output, fx.Node):
        raise ValueError(
            f"Expected a network that makes one tensor of one, {type(model).__name__} takes "
            f"{[images.name, *(other.name for other in others)]} and returns {output}."
        )
    return graph


def reshape_views(graph: fx.Graph) -> None:
    """Lets views of a graph copy where they must: values of a part may lack the layout they ask."""
    for node in graph.find_nodes(op="call_method", target="view"):
        node.target = "reshape"


def writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the operation may write into its first input: `+=`, `add_`, `inplace=True`."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    flagged = node.kwargs.get("inplace") or any(arg is True for arg in node.args)
    return node.target in IN_PLACE or (node.op == "call_function" and bool(flagged))


class _Name(str):
    """Stands for the node of this name."""


def listed_nodes(graph: fx.Graph) -> list[Any]:
    """A graph as a list for pickle, which would recurse through a deep one along its edges."""

    def named(node: fx.Node) -> _Name:
        return _Name(node.name)

    return [
        (node.op, node.target, fx.map_arg((node.args, node.kwargs), named), node.name)
        for node in graph.nodes
    ]


def graph_of(nodes: list[Any]) -> fx.Graph:
    """The graph that `listed_nodes` listed."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def node_of(argument: Any) -> Any:
        return known[argument] if isinstance(argument, _Name) else argument

    for op, target, arguments, name in nodes:
        args, kwargs = cast(Any, fx.node.map_aggregate(arguments, node_of))
        known[name] = graph.create_node(op, target, args, kwargs, name)
    return graph


def adopt(network: nn.Module, backbone: nn.Module, graph: fx.Graph, own: tuple[str, ...]) -> None:
    """Gives `network` the parts of `backbone` under their names, to run its traced graph.

    Args:
        graph: of the backbone.
        own: names of the parts that the network has, or will have, beside those.

    Raises:
        ValueError: if a part of the backbone is called like one of the network.
    """
    for name in (*backbone._modules, *backbone._parameters, *backbone._buffers):
        if name in own or hasattr(type(network), name):
            raise ValueError(
                f"{type(backbone).__name__} has a part called {name!r}, which is the name of "
                "something else here. Rename it."
            )
    network._modules.update(backbone._modules)
    network._parameters.update(backbone._parameters)
    network._buffers.update(backbone._buffers)
    network._non_persistent_buffers_set.update(backbone._non_persistent_buffers_set)
    for name in {str(node.target) for node in graph.nodes if node.op == "get_attr"}:
        if not hasattr(network, name.split(".")[0]):  # a tensor that forward makes
            network.register_buffer(name, getattr(backbone, name), persistent=False)
