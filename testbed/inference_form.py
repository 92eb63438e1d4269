"""Inference form of a network: what it runs where its weights change no more.

Batch norm and ReLU are folded into the convs before them, and weights are laid out once.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

from testbed.prediction import evaluating
from testbed.prepared_layers import Prepared, prepare_conv, prepare_linear

log = logging.getLogger(__name__)

ROUNDING = 1e-3  # of the largest logit, by which folded weights may change a logit
_IDLE = (nn.Identity, nn.modules.dropout._DropoutNd)
_RELUS = frozenset({F.relu, torch.relu, "relu"})


@runtime_checkable
class HasForm(Protocol):
    """A network that decides per image, made of others that do not."""

    def inference_form(self, example: Tensor) -> nn.Module:
        """See the function of that name."""
        ...


def inference_form(network: nn.Module, example: Tensor) -> nn.Module:
    """A network that gives in evaluation mode what `network` does, in less time.

    It is made of the weights as they are. A network that says itself what its form is (`HasForm`)
    is asked; any other that torch.fx cannot trace is given back itself.

    Args:
        example: (n, C, H, W), a valid input, on the network's device.
    """
    if isinstance(network, HasForm):
        return network.inference_form(example)
    with evaluating(network), torch.no_grad():
        try:
            form = _prepared(network).eval()
            found, expected = form(example), network(example)
            off = (found - expected).abs().max() > ROUNDING * expected.abs().max()
        except Exception as error:  # whatever a user's forward says to a tracer
            log.info("Runs as it is, since it cannot be traced and prepared: %s", error)
            return network
    return network if off else form


def folded_graph(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    conv: type[nn.Conv2d],
    norm: type[nn.Module] = nn.BatchNorm2d,
) -> fx.Graph:
    """A copy of a traced graph as it is to run in evaluation mode.

    What is idle then is gone. A batch norm and a ReLU that alone read a conv are folded into it, a
    ReLU after a max-pool too: `node.meta` of the conv has the name of the `norm` and whether there
    is a `relu`.

    Args:
        modules: the network's, by name.
        conv: the type of the convs that can take them.
        norm: of the batch norms that can be folded, beside `nn.BatchNorm2d`.
    """
    graph = copy.deepcopy(graph)
    for node in list(graph.nodes):
        before = source = _input_of(node)
        module = module_of(node, modules)
        called = node.op in ("call_function", "call_method") and node.target in _RELUS
        relu = type(module) is nn.ReLU or called
        while relu and type(module_of(source, modules)) is nn.MaxPool2d and len(source.users) == 1:
            source = _input_of(source)
        follows_conv = type(module_of(source, modules)) is conv and len(source.users) == 1
        kind = type(module)
        norms = kind in (norm, nn.BatchNorm2d) and getattr(module, "running_mean", None) is not None
        if follows_conv and norms and not {"norm", "relu"} & source.meta.keys():
            source.meta["norm"] = node.target
        elif follows_conv and relu:
            source.meta["relu"] = True
        elif not isinstance(module, _IDLE):
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    return graph


def _input_of(node: fx.Node) -> fx.Node:
    """The first one; the node itself where it has none."""
    return node.all_input_nodes[0] if node.all_input_nodes else node


class _Ready(nn.Module):
    def __init__(self, run: Prepared) -> None:
        super().__init__()
        self.forward = run


def _prepared(network: nn.Module) -> fx.GraphModule:
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name or 'the network'} has hooks")
    graph = folded_graph(fx.Tracer().trace(network), modules, nn.Conv2d)
    form = fx.GraphModule(network, graph)
    for number, node in enumerate(form.graph.nodes):
        module = module_of(node, modules)
        if type(module) is nn.Conv2d:
            norm = modules[node.meta["norm"]] if "norm" in node.meta else None
            assert norm is None or isinstance(norm, nn.BatchNorm2d)
            run = prepare_conv(module, module.weight.dtype, norm=norm, relu="relu" in node.meta)
        elif type(module) is nn.Linear:
            run = prepare_linear(module, module.weight.dtype)
        else:
            continue
        node.target = f"ready_{number}"
        form.add_module(node.target, _Ready(run))
    form.delete_all_unused_submodules()
    form.recompile()
    return form


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None
