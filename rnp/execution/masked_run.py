"""Masked pass of a batch through a backbone, which waits for an action at every prunable conv.

Images of a batch may take different actions: all channels are computed, and those beyond an image's
prefix are set to zero where the next layers read them. That is what training needs (whole batches,
gradients), and what the network that really skips the work is held to.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from rnp.execution.layers import PrefixBatchNorm
from rnp.structure.channel_flow import ChannelFlow
from rnp.structure.trace import in_mode, writes


class Traced(fx.Interpreter):
    """Runs a traced network node by node, functional dropout in the mode that it is in now."""

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        # Without torch's notes on where a node came from, which take longer than a small layer.
        return getattr(self, n.op)(n.target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = in_mode((args, kwargs), self.module.training)
        return super().call_function(target, args, kwargs)


class MaskedRun(Traced):
    """The images' way through the network: observe, act, observe, ..., until there are logits.

    This is the Markov decision process of Lin et al. 2017 (section 3.2), of which every image of
    the batch is an episode. A run can be forked, without gradients: what was computed is shared
    (or copied, where it is written into later), what comes is not.
    """

    def __init__(self, network: nn.Module, flow: ChannelFlow, images: Tensor) -> None:
        """`network` owns the modules that `flow` names; images are (n, C, H, W)."""
        super().__init__(network, graph=flow.graph)
        self.flow = flow
        self.images = images
        self.actions: list[Tensor] = []
        """Of each step taken, (n,) int64: 0 computes the first group only, groups - 1 all."""
        self.position = 1
        """Nodes of the flow that were run; the first one is the images."""
        self.env[flow.nodes[0]] = images
        self._observed: list[Tensor] = []

    def observe(self) -> Tensor | None:
        """What the next decision is made from; None after the last one, when there are logits.

        Returns:
            (n, C) float32: the global average pool of the input of the conv that is decided about.
        """
        step = len(self.actions)
        # Up to where an action is needed, so that forks share what comes before.
        for node in self.flow.nodes[self.position :]:
            read = (
                self.flow.step_read_by.get(str(node.target)) if node.op == "call_module" else None
            )
            if read is not None and read >= step:
                break
            self.env[node] = self.run_node(node)
            for used in self.user_to_last_uses.get(node, ()):
                del self.env[used]
            self.position += 1
        return self._observed[step] if step < len(self._observed) else None

    def act(self, actions: Tensor) -> None:
        """Decides how much of the conv that was observed last is computed, (n,) int64."""
        assert len(self.actions) < len(self._observed), "observe before you act"
        self.actions.append(actions)

    def fork(self) -> Self:
        """A run that has come as far as this one, and goes on by itself."""
        other = copy(self)
        other.actions, other._observed = list(self.actions), list(self._observed)
        other.env = dict(self.env)
        if any(writes(node, self.submodules) for node in self.flow.nodes[self.position :]):
            memo: dict[int, Any] = {}  # so that what is a view of another stays one
            other.env = {node: deepcopy(value, memo) for node, value in self.env.items()}
        return other

    @property
    def logits(self) -> Tensor:
        """(n, classes), once `observe` has given None."""
        assert self.position == len(self.flow.nodes), "decisions are still to be made"
        logits: Tensor = self.env[self.flow.nodes[-1]]
        return logits

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = self.flow.step_read_by.get(target)
        if read is not None:
            args = (self._masked(args[0], read), *args[1:])
        module = self.submodules[target]
        if isinstance(module, PrefixBatchNorm):
            kwargs = {**kwargs, "actions": self.actions[self.flow.norms[target]]}
        result = module(*args, **kwargs)
        if target in self.flow.step_of:
            self._observed.append(args[0].float().mean(dim=(2, 3)))
        return result

    def _masked(self, values: Tensor, step: int) -> Tensor:
        conv = self.flow.convs[step]
        mask = prefix_mask(conv.prefixes, self.actions[step], values.dtype)
        if values.ndim == 2:  # flattened: a channel's inputs of a linear layer lie side by side
            return (values.unflatten(1, (conv.channels, -1)) * mask[:, :, None]).flatten(1)
        return values * mask[:, :, None, None]


def prefix_mask(prefixes: Sequence[int], actions: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for each channel that is computed, 0 for the others: (n, channels).

    Args:
        prefixes: channels that each action computes; the last is all of them.
        actions: (n,) int64.
    """
    sizes = torch.tensor(prefixes, device=actions.device)
    channels = torch.arange(prefixes[-1], device=actions.device)
    return (channels < sizes[:, None]).to(dtype).index_select(0, actions)
