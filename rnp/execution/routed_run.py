"""Pass of a batch through a residual network, which waits for an action at every block.

Images that do without a block's branch are left out of its batch, so nothing of it is computed for
them, and batch norms in it see those images alone that take it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from rnp.execution.layers import FEW
from rnp.execution.masked_run import Traced
from rnp.structure.residual_blocks import Block, ResidualBlocks
from testbed.looks import gathered

SKIP, COMPUTE = 0, 1
"""The actions at a block."""


class RoutedRun(Traced):
    """The images' way through the network: observe, act, observe, ..., until there are logits.

    As a Markov decision process it is that of `MaskedRun`, with two actions.
    """

    def __init__(
        self, network: nn.Module, flow: ResidualBlocks, images: Tensor, masks: bool = False
    ) -> None:
        """
        Args:
            network: owns the modules that `flow` names.
            images: (n, C, H, W).
            masks: whether branches are computed for all images and masked, as programs need it.
        """
        super().__init__(network, graph=flow.graph)
        self.flow = flow
        self.images = images
        self.actions: list[Tensor] = []
        """Of each step taken, (n,) int64: 0 skips the branch, 1 computes it."""
        self.position = 1
        """Nodes of the flow that were passed; the first one is the images."""
        self.env[flow.nodes[0]] = images
        self._masks = masks

    def observe(self) -> Tensor | None:
        """What the next decision is made from; None after the last one, when there are logits.

        Returns:
            (n, C) float32: the global average pool of the block's input.
        """
        for node in self.flow.nodes[self.position :]:
            step = self.flow.step_of.get(node)
            if step == len(self.actions):
                return pooled(self.env[self.flow.node[self.flow.blocks[step].input]])
            if step is None:
                self.env[node] = self.run_node(node)
                self._forget([node])
            elif node.name == self.flow.blocks[step].sum:  # its branch runs with it
                block = self.flow.blocks[step]
                self.env[node] = self._through(block, self.actions[step])
                self._forget([*(self.flow.node[name] for name in block.branch), node])
            self.position += 1
        return None

    def _forget(self, passed: list[fx.Node]) -> None:
        """Frees what no later operation reads."""
        for node in passed:
            for used in self.user_to_last_uses.get(node, ()):
                self.env.pop(used, None)

    def act(self, actions: Tensor) -> None:
        """Decides who takes the branch of the block that was observed last, (n,) int64."""
        self.actions.append(actions)

    def fork(self) -> Self:
        """A run that has come as far as this one, and goes on by itself."""
        other = copy(self)
        other.actions, other.env = list(self.actions), dict(self.env)
        if self.flow.in_place:
            memo: dict[int, Any] = {}  # so that what is a view of another stays one
            other.env = {node: deepcopy(value, memo) for node, value in self.env.items()}
        return other

    @property
    def logits(self) -> Tensor:
        """(n, classes), once `observe` has given None."""
        assert self.position == len(self.flow.nodes), "decisions are still to be made"
        logits: Tensor = self.env[self.flow.nodes[-1]]
        return logits

    def _through(self, block: Block, actions: Tensor) -> Tensor:
        """What a block makes of all images."""
        images = self.env[self.flow.node[block.shortcut]]
        if self._masks:
            taken = (actions == COMPUTE).view(-1, *[1] * (images.ndim - 1))
            return torch.where(taken, self._computed(block, images.clone()), images)
        found = through(lambda taking: self._computed(block, taking), images, actions)
        return found.clone() if found is images and self.flow.in_place else found

    def _computed(self, block: Block, images: Tensor) -> Tensor:
        """The sum of the branch and these images."""
        node, outer = self.flow.node, self.env
        self.env = {**outer, node[block.input]: images, node[block.shortcut]: images}
        norms = [self.submodules[name] for name in block.norms]
        learning = [norm for norm in norms if norm.training]
        # Asked only then: a comparison with the number of images would fix an export's.
        few = bool(learning) and len(images) < FEW
        try:
            with _by_running_statistics(learning if few else []):
                for name in block.branch:
                    self.env[node[name]] = self.run_node(node[name])
                result: Tensor = self.run_node(node[block.sum])
        finally:
            self.env = outer
        if result.shape != images.shape:
            raise ValueError(
                f"Expected a block {block.name!r} that keeps the shape of its input, "
                f"{tuple(images.shape[1:])}; it makes {tuple(result.shape[1:])}. Such a block "
                "cannot be skipped."
            )
        return result


def pooled(maps: Tensor) -> Tensor:
    """What a block is decided from, (n, C) float32, of its input (n, C, ...)."""
    return maps.mean(dim=tuple(range(2, maps.ndim)), dtype=torch.float32)


def through(branch: Callable[[Tensor], Tensor], images: Tensor, actions: Tensor) -> Tensor:
    """What a block makes of all images, its branch computed for those alone that take it.

    Args:
        branch: makes the block's output of its input.
        actions: (n,) int64.

    Returns:
        the images themselves, where none takes it.
    """
    rows = (actions == COMPUTE).nonzero().flatten()
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return branch(images)
    computed = branch(gathered(images, rows))
    return images.to(computed.dtype).index_copy(0, rows, computed)


@contextmanager
def _by_running_statistics(norms: list[nn.Module]) -> Iterator[None]:
    """Meanwhile these batch norms in training do not use the statistics of a few images."""
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
