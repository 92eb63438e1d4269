"""Routed network, which `network_routing` makes: it looks at each image at each residual block that
can be skipped, and computes the block's branch for those alone that need it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from rnp.execution.decision import DecisionNetwork, decisions
from rnp.execution.masked_run import Traced
from rnp.execution.routed_run import COMPUTE, RoutedRun, pooled, through
from rnp.structure.residual_blocks import residual_blocks
from rnp.structure.trace import adopt, writes
from testbed.inference_form import inference_form


class RoutedNetwork(nn.Module):
    """A backbone whose layers keep their names, beside them `decision`, the decision network."""

    def __init__(self, backbone: nn.Module, encoding: int = 64, hidden: int = 128) -> None:
        """
        Args:
            backbone: copied.
            encoding, hidden: sizes of the decision network (see `DecisionNetwork`).

        Raises:
            ValueError: if no residual block of the backbone can be skipped, or one of its parts is
                called like one of the network made of it.
        """
        super().__init__()
        backbone = copy.deepcopy(backbone)
        self.flow = residual_blocks(backbone)
        adopt(self, backbone, self.flow.graph, ("decision", "flow"))
        inputs = [block.channels for block in self.flow.blocks]
        self.decision = DecisionNetwork(inputs, 2, encoding, hidden)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W), each computed as its decisions say.

        In training mode without gradients every branch is computed: so what a training takes is
        counted, at most.
        """
        if self.training and not torch.is_grad_enabled():
            return self.whole(images)
        return self.routed(images)

    def routed(self, images: Tensor, actions: Tensor | None = None) -> Tensor:
        """Logits under given actions, (n, blocks) int64: 1 computes a branch; or its own."""
        run = self.routed_run(images, actions)
        learns = self.training and torch.is_grad_enabled()
        if learns and not all(taken.any() for taken in run.actions):
            # A gradient of zero, not none: a fused optimiser takes the same parameters in every
            # step. Those of the decisions never have one, or they would decay.
            fixed = {id(p) for p in self.decision.parameters()}
            learning = [p for p in self.parameters() if p.requires_grad and id(p) not in fixed]
            return run.logits + 0 * sum(p.sum() for p in learning)
        return run.logits

    def masked(self, images: Tensor, actions: Tensor | None = None) -> Tensor:
        """As `routed`, with every branch computed for all images: what programs are made of."""
        return self.routed_run(images, actions, masks=True).logits

    def whole(self, images: Tensor) -> Tensor:
        """Logits with every branch computed, and no decision."""
        shape = len(images), len(self.flow.blocks)
        return self.routed(images, torch.full(shape, COMPUTE, device=images.device))

    def routed_run(
        self, images: Tensor, actions: Tensor | None = None, masks: bool = False
    ) -> RoutedRun:
        """The run that `routed` has the logits of, which also has the actions taken."""
        if images.ndim != 4:
            raise ValueError(f"Expected images (n, C, H, W), got shape {tuple(images.shape)}.")
        expected = (images.shape[0], len(self.flow.blocks))
        if actions is not None and actions.shape != expected:
            raise ValueError(
                f"Expected actions (images, blocks), here {expected}, got {tuple(actions.shape)}."
            )
        run = self.started(images, masks)
        if actions is None:
            decisions(self.decision.fixed, run)
        else:
            while run.observe() is not None:
                run.act(actions[:, len(run.actions)])
        return run

    def decided(self, images: Tensor) -> Tensor:
        """The actions taken, (n, blocks) int64 (see `TellsDecisions`)."""
        return torch.stack(self.routed_run(images).actions, dim=1)

    def started(self, images: Tensor, masks: bool = False) -> RoutedRun:
        """A run of images (n, C, H, W), which waits for its first action."""
        return RoutedRun(self, self.flow, images, masks)

    def inference_form(self, example: Tensor) -> nn.Module:
        """The same network in parts that are each in the form in which they run best.

        The network itself, where more than one tensor passes from block to block.
        """
        try:
            return _Parts(self, example).eval()
        except NoPiecesError:
            return self


class FixedRoute(nn.Module):
    """A backbone without the branches of some blocks, the same for every image.

    Its layers keep their names; those of the blocks that it does without stay, and never run.
    """

    kept_blocks: Tensor
    """(blocks,) bool: whose branches are computed. A network file's decide."""

    def __init__(self, backbone: nn.Module, kept: Sequence[bool] | None = None) -> None:
        """
        Args:
            backbone: copied.
            kept: for each block that can be skipped; None for all.

        Raises:
            ValueError: as `RoutedNetwork`.
        """
        super().__init__()
        backbone = copy.deepcopy(backbone)
        self.all_blocks = residual_blocks(backbone)
        adopt(self, backbone, self.all_blocks.graph, ("kept_blocks", "all_blocks", "flow"))
        kept = [True] * len(self.all_blocks.blocks) if kept is None else kept
        self.register_buffer("kept_blocks", torch.tensor(kept))
        self.flow = self.all_blocks.route(kept)
        self.register_load_state_dict_post_hook(_take_kept_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        logits: Tensor = Traced(self, graph=self.flow.graph).run(images)
        return logits

    def inference_form(self, example: Tensor) -> nn.Module:
        """The same network in the form in which it runs best."""
        return inference_form(fx.GraphModule(self, self.flow.graph), example)


def _take_kept_blocks(network: FixedRoute, _: object) -> None:
    """Makes a network whose weights were loaded run the blocks that came with them."""
    network.flow = network.all_blocks.route(network.kept_blocks.tolist())


class NoPiecesError(Exception):
    """Something passes by a block, so that the network cannot be cut there."""


class Pieces:
    """A routed network cut into what lies before each block, its branch, and what comes last.

    Each piece is a network from one value to another, with the routed network's own layers.
    """

    def __init__(self, network: RoutedNetwork) -> None:
        """
        Raises:
            NoPiecesError: if more than one value passes from block to block.
        """
        self._network, self._flow, node = network, network.flow, network.flow.node
        self._modules = dict(network.named_modules())
        self._taken: set[fx.Node] = set()
        self.before: list[nn.Module] = []
        self.branches: list[nn.Module] = []
        """With the sum: from a block's input to its output."""
        came_from = self._flow.nodes[0]
        for block in self._flow.blocks:
            self.before.append(self._piece([came_from], node[block.input]))
            self.branches.append(
                self._piece([node[block.input], node[block.shortcut]], node[block.sum])
            )
            came_from = node[block.sum]
        (logits,) = self._flow.nodes[-1].all_input_nodes
        self.last: nn.Module = self._piece([came_from], logits)
        left = set(self._flow.nodes) - self._taken
        if any(writes(each, self._modules) for each in left):
            raise NoPiecesError

    def _piece(self, reads: list[fx.Node], gives: fx.Node) -> nn.Module:
        """
        Args:
            reads: one value by all its names.
        """
        needed, waiting = set(), [gives]
        while waiting:
            node = waiting.pop()
            if node not in reads and node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        graph = fx.Graph()
        copied = dict.fromkeys(reads, graph.placeholder("value"))
        for node in self._flow.nodes:
            if node in needed:
                if node.op == "placeholder":
                    raise NoPiecesError
                copied[node] = graph.node_copy(node, lambda used: copied[used])
        graph.output(copied[gives])
        self._taken |= needed
        return fx.GraphModule(self._network, graph).eval()


class _Parts(nn.Module):
    """A routed network in pieces that are each in the form in which they run best."""

    def __init__(self, network: RoutedNetwork, example: Tensor) -> None:
        super().__init__()
        self.decision = network.decision
        self._steps = [network.decision.prepare(step) for step in range(len(network.flow.blocks))]
        self.before, self.branches = nn.ModuleList(), nn.ModuleList()
        pieces, value = Pieces(network), example
        with torch.no_grad():
            for before, branch in zip(pieces.before, pieces.branches, strict=True):
                self.before.append(inference_form(before, value))
                value = before(value)
                self.branches.append(inference_form(branch, value))
                value = branch(value)
            self.last = inference_form(pieces.last, value)

    def forward(self, images: Tensor) -> Tensor:
        value, state = images, None
        for step, (before, branch) in enumerate(zip(self.before, self.branches, strict=True)):
            value = before(value)
            q, state = self.decision.fixed(step, pooled(value), state, self._steps[step])
            value = through(branch, value, q.argmax(dim=1))
        logits: Tensor = self.last(value)
        return logits
