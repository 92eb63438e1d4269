"""One pass of images through a network whose convs are cut to prefixes, decision by decision.

Nothing is skipped here: all channels are computed, and those beyond an image's prefix are set to
zero where the next layers read them. That is what training needs (whole batches, gradients), and
what the network that really skips the work is held to.
"""

import operator
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn

from rnp.channel_flow import ChannelFlow

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class PrefixRun:
    """The images' way through the network: observe, act, observe, ..., until there are logits.

    This is the Markov decision process of Lin et al. 2017 (section 3.2), of which every image of
    the batch is an episode. A run can be forked, without gradients: what was computed is shared
    (or copied, where it is written into later), what comes is not.
    """

    def __init__(self, network: nn.Module, flow: ChannelFlow, images: Tensor) -> None:
        """`network` owns the modules that `flow` names; images are (n, C, H, W)."""
        self.network = network
        self.flow = flow
        self.actions: list[Tensor] = []
        """Of each step taken, (n,) int64: 0 computes the first group only, groups - 1 all."""
        self.position = 0
        """Nodes of the flow that were run."""
        self._images = images
        self._values: dict[fx.Node, Any] = {}
        self._observed: list[Tensor] = []

    def observe(self) -> Tensor | None:
        """What the next decision is made from; None after the last one, when there are logits.

        Returns:
            (n, C) float32: the global average pool of the input of the conv that is decided about.
        """
        step = len(self.actions)
        while len(self._observed) <= step and self.position < len(self.flow.nodes):
            self._advance()
        if step < len(self._observed):
            while self.position < len(self.flow.nodes) and not self._needs_action():
                self._advance()  # up to where the action is needed, so that forks share it
            return self._observed[step]
        return None

    def act(self, actions: Tensor) -> None:
        """Decides how much of the conv that was observed last is computed, (n,) int64."""
        assert len(self.actions) < len(self._observed), "observe before you act"
        self.actions.append(actions)

    def fork(self) -> "PrefixRun":
        """A run that has come as far as this one, and goes on by itself."""
        other = PrefixRun(self.network, self.flow, self._images)
        other.actions = list(self.actions)
        other.position = self.position
        other._values = dict(self._values)
        if any(_writes(node, self.network) for node in self.flow.nodes[self.position :]):
            memo: dict[int, Any] = {}  # so that what is a view of another stays one
            other._values = {node: deepcopy(each, memo) for node, each in self._values.items()}
            other._images = deepcopy(self._images, memo)
        other._observed = list(self._observed)
        return other

    @property
    def logits(self) -> Tensor:
        """(n, classes), once `observe` has given None."""
        assert self.position == len(self.flow.nodes), "decisions are still to be made"
        logits: Tensor = self._values[self.flow.nodes[-1]]
        return logits

    def _step_read_by(self, node: fx.Node) -> int | None:
        """Which decision the node's input depends on, if it reads a pruned conv."""
        return self.flow.step_read_by.get(str(node.target)) if node.op == "call_module" else None

    def _needs_action(self) -> bool:
        step = self._step_read_by(self.flow.nodes[self.position])
        return step is not None and step >= len(self.actions)

    def _advance(self) -> None:
        node = self.flow.nodes[self.position]
        args: Any = fx.map_arg(node.args, self._values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self._values.__getitem__)
        step = self._step_read_by(node)
        if step is not None:
            args = (self._masked(args[0], step), *args[1:])
        self._values[node] = self._run(node, args, kwargs)
        if node.op == "call_module" and node.target in self.flow.step_of:
            self._observed.append(args[0].float().mean(dim=(2, 3)))
        for used in self.flow.last_uses.get(node, ()):
            del self._values[used]
        self.position += 1

    def _masked(self, values: Tensor, step: int) -> Tensor:
        conv = self.flow.convs[step]
        mask = prefix_mask(conv.prefixes, self.actions[step], values.dtype)
        if values.ndim == 2:  # flattened: a channel's inputs of a linear layer lie side by side
            return (values.unflatten(1, (conv.channels, -1)) * mask[:, :, None]).flatten(1)
        return values * mask[:, :, None, None]

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return self._images
        if node.op == "get_attr":
            value: Any = self.network
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        if node.op == "call_module":
            return self.network.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            # A view may ask for a layout that the values do not have here.
            method = "reshape" if node.target == "view" else str(node.target)
            return getattr(args[0], method)(*args[1:], **kwargs)
        if node.op == "call_function":
            if "training" in kwargs:  # as it was when the network was traced
                kwargs = {**kwargs, "training": self.network.training}
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return args[0]  # output


def _writes(node: fx.Node, network: nn.Module) -> bool:
    """Whether the operation may write into its first input: `+=`, `add_`, `inplace=True`."""
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    flagged = node.kwargs.get("inplace") or any(arg is True for arg in node.args)
    return node.target in IN_PLACE or (node.op == "call_function" and bool(flagged))


def prefix_mask(prefixes: Sequence[int], actions: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for each channel that is computed, 0 for the others: (n, channels).

    Args:
        prefixes: channels that each action computes; the last is all of them.
        actions: (n,) int64.
    """
    sizes = torch.tensor(prefixes, device=actions.device)
    channels = torch.arange(prefixes[-1], device=actions.device)
    return (channels < sizes[:, None]).to(dtype).index_select(0, actions)
