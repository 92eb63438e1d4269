"""Prepared network, made ready to skip: for each set of prefixes, weights cut and laid out once.

Batch norm is folded into the convs, and so is ReLU.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, fx, nn

from rnp.execution.decision import DecisionNetwork
from rnp.execution.layers import (
    PrefixBatchNorm,
    PrefixBatchNorm2d,
    PrefixConv2d,
    PrefixLinear,
    prepare_per_channel,
)
from rnp.execution.masked_run import Traced
from rnp.execution.segments import Segment, cut_into_segments
from rnp.structure.channel_flow import ChannelFlow
from testbed import compiled
from testbed.inference_form import folded_graph, module_of
from testbed.prepared_layers import prepare_conv, prepare_linear

Call = tuple[fx.Node, Callable[..., Any], Sequence[fx.Node]]
"""An operation that is ready to run: what it gives, its function, what that takes."""


class PreparedNetwork:
    """What a network runs in evaluation mode.

    It is made of the weights as they are, and of no use once they change: see `is_current`.
    """

    def __init__(self, network: nn.Module, decision: DecisionNetwork, flow: ChannelFlow) -> None:
        """`network` owns the modules that `flow` names; its layers allow prefixes."""
        self._modules = dict(network.named_modules())
        self._flow = flow
        self._decision = decision
        self._device_type = next(decision.parameters()).device.type
        graph = folded_graph(flow.graph, self._modules, PrefixConv2d, PrefixBatchNorm2d)
        self.images, *_, output = graph.nodes
        self._traced = Traced(network, graph=graph)
        (self.logits,) = output.all_input_nodes
        self.segments = cut_into_segments(graph, flow, self._modules)
        self._calls: dict[Any, list[Call]] = {}
        self._steps = [decision.prepare(step) for step in range(len(flow.convs))]
        operators = compiled.operators() if self._device_type == "cpu" else None
        self._pooled = None if operators is None else operators.pooled.default
        self._owners: list[dict[str, Any]] = [
            parts
            for module in self._modules.values()
            for parts in (module._modules, module._parameters, module._buffers)
            if parts
        ]
        self._parts = self._parts_now()
        self._versions = [_version(part) for part in self._parts]

    def is_current(self) -> bool:
        """Whether all modules and weights are the ones that were prepared, and unchanged."""
        parts = self._parts_now()
        return (
            len(parts) == len(self._parts)
            and all(map(operator.is_, parts, self._parts))
            and [_version(part) for part in parts] == self._versions
        )

    def _parts_now(self) -> list[Any]:
        return [part for parts in self._owners for part in parts.values() if part is not None]

    def autocast_dtype(self) -> torch.dtype | None:
        """The precision that autocast now asks for, if it does."""
        device = self._device_type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def calls(
        self, segment: Segment, actions: tuple[int, ...], dtype: torch.dtype | None
    ) -> list[Call]:
        """What a segment runs.

        Args:
            actions: of the decisions that it depends on.
            dtype: the precision of matrix products; None for that of the weights.
        """
        key = (segment.nodes[0], actions, dtype)
        if key not in self._calls:
            taken = dict(zip(segment.steps, actions, strict=True))
            self._calls[key] = [
                (node, self._prepare(node, taken, dtype), node.all_input_nodes)
                for node in segment.nodes
            ]
        return self._calls[key]

    def decide(
        self, step: int, maps: Sequence[Tensor], images: Sequence[int], state: Tensor | None
    ) -> tuple[list[int], Tensor]:
        """The action for each image, and the decision network's next state.

        Args:
            maps: the input of the step's conv, in batches (n_b, C_b, H, W) of a prefix each.
            images: for each row of each batch, the number of its image.
            state: (n, hidden); None at the first step.
        """
        features = self._features(maps, images, self._decision.inputs[step])
        values, state = self._decision.fixed(step, features, state, self._steps[step])
        actions: list[int] = values.argmax(dim=1).tolist()
        return actions, state

    def _features(self, maps: Sequence[Tensor], images: Sequence[int], channels: int) -> Tensor:
        """(n, channels) float32: pooled maps, zero where they were not computed."""
        if self._pooled is not None:
            result: Tensor = self._pooled(maps, images, channels)
            return result
        pooled = [each.mean(dim=(2, 3), dtype=torch.float32) for each in maps]
        padded = [F.pad(each, (0, channels - each.shape[1])) for each in pooled]
        return torch.cat(padded)[torch.tensor(images, device=padded[0].device).argsort()]

    def _prepare(
        self, node: fx.Node, actions: Mapping[int, int], dtype: torch.dtype | None
    ) -> Callable[..., Any]:
        """The node, with what is folded into it, as a function of the values that it takes.

        Args:
            actions: those taken, by their decisions.
        """
        prefixes = {step: self._flow.convs[step].prefixes[taken] for step, taken in actions.items()}
        module = module_of(node, self._modules)
        name = "" if module is None else str(node.target)
        read, step = self._flow.step_read_by.get(name), self._flow.step_of_outputs.get(name)
        inputs = None if read is None else prefixes[read]
        outputs = None if step is None else prefixes[step]
        if type(module) is PrefixConv2d:
            prepared = prepare_conv(
                module,
                dtype or module.weight.dtype,
                inputs=inputs,
                outputs=outputs,
                norm=self._norm(node.meta["norm"], actions) if "norm" in node.meta else None,
                relu="relu" in node.meta,
            )
            return partial(module, prepared=prepared)
        if type(module) is PrefixLinear:
            if read is not None:
                inputs = prefixes[read] * self._flow.convs[read].readers[name]
            prepared = prepare_linear(module, dtype or module.weight.dtype, inputs)
            return partial(module, prepared=prepared)
        if name in self._flow.norms:
            return prepare_per_channel(self._norm(name, actions), outputs)
        if outputs is not None:
            return prepare_per_channel(module, outputs)
        plain = node.args == (*node.all_input_nodes,) and not node.kwargs
        if plain and module is not None:
            return module
        if plain and node.op == "call_function":
            return cast(Callable[..., Any], node.target)

        def as_traced(*values: Any) -> Any:
            self._traced.env = dict(zip(node.all_input_nodes, values, strict=True))
            return self._traced.run_node(node)

        return as_traced

    def _norm(self, name: str, actions: Mapping[int, int]) -> Any:
        """A batch norm, with the statistics of the prefix that it meets."""
        norm = self._modules[name]
        if isinstance(norm, PrefixBatchNorm):
            return norm.at(actions[self._flow.norms[name]])
        return norm


def _version(part: nn.Module | Tensor) -> int:
    """How often a tensor was changed in place."""
    if isinstance(part, nn.Module) or part.is_inference():  # which count nothing
        return 0
    return part._version
