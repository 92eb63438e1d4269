"""Static blocks: the control that shows what network routing gains by looking at the image.

Takes the backbone that `network_routing` itself starts from (`adapted`), drops the same residual
blocks for all images, the best choice that the budget allows, and fine-tunes the shallower network
for all epochs that are left. It stands to `network_routing` as `static_prefix` to `rnp`; that
blocks may be dropped at all is from Veit, Wilber, Belongie 2016, "Residual networks behave like
ensembles of relatively shallow networks", arXiv 1605.06431.

Where we differ: blocks are chosen by the loss on a part of the validation images (`choice_share`;
see `fixed_choice`), with the batch-norm statistics of random blocks; every accuracy that is
reported is of the others (`held_back`).

Its output runs fewer multiplications, the same for every image. It still holds the weights of the
blocks that it drops.
"""

import torch
from pydantic import Field
from torch import nn

from rnp.batch_norm_statistics import estimate_statistics
from rnp.dropped_blocks import BlockAdaptation, BlockCost, adapted
from rnp.execution.routed_run import COMPUTE, SKIP
from rnp.fixed_choice import best_fixed_actions
from rnp.routed_network import FixedRoute, RoutedNetwork
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.held_back import divided
from testbed.method import Run


class StaticBlocks(BlockAdaptation):
    """The adaptation's options, and the budget."""

    keep_multiplications: float = Field(default=0.5, gt=0, le=1)
    """Most multiplications, as a share of the dense ones."""
    choice_share: float = Field(default=0.5, gt=0, lt=1)
    """Of the validation images: those that the blocks are chosen on."""

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that choose nothing (see `HoldsBack`)."""
        return divided(data, self.choice_share, "choice_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        BlockCost(RoutedNetwork(dense), data, deciding=False).budget(self.keep_multiplications)
        self.held_back(data)

    def skeleton(self, dense: nn.Module) -> FixedRoute:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        return FixedRoute(dense)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A shallower copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the adaptation, if the run's folder holds a checkpoint.

        Raises:
            ValueError: before any work, as `check_network`.
        """
        network = RoutedNetwork(model)
        cost = BlockCost(network, data, deciding=False)
        budget = cost.budget(self.keep_multiplications)
        images, judged = divided(data, self.choice_share, "choice_share")
        checkpoint = Checkpoint(self, model, data, run)
        network.to(run.device)
        if checkpoint.load(network) < 0:
            network = adapted(model, judged, run, self.adaptation)
            checkpoint.save(0, network)
        actions = best_fixed_actions(network, images, data, run, cost, budget, a_block_less)
        names = [block.name for block in network.flow.blocks]
        run.report({f"computed.{name}": a for name, a in zip(names, actions, strict=True)})
        chosen = torch.tensor(actions)
        estimate_statistics(network, judged, run, lambda n: chosen.expand(n, -1))
        pruned = FixedRoute(model, [bool(action) for action in actions])
        weights = network.state_dict()
        own = {name: weights[name] for name in model.state_dict()}
        pruned.load_state_dict({**own, "kept_blocks": pruned.kept_blocks})
        run.fine_tune(pruned.to(run.device), judged)
        return pruned.eval()


def a_block_less(step: int, action: int) -> int | None:
    """The action that skips a block, after the one that computes it."""
    return SKIP if action == COMPUTE else None
