"""Static blocks: the control that shows what network routing gains by looking at the image.

Takes the backbone that `network_routing` itself starts from (`adapted`), drops the same residual
blocks for all images, the best choice that the budget allows, and fine-tunes the shallower network
for all epochs that are left. It stands to `network_routing` as `static_prefix` to `rnp`; that
blocks may be dropped at all is from Veit, Wilber, Belongie 2016, "Residual networks behave like
ensembles of relatively shallow networks", arXiv 1605.06431.

Where we differ: blocks are chosen by the mean cross-entropy of a part of the validation images
(`choice_share`), with the batch-norm statistics of random blocks; every accuracy that is reported
is of the others (`held_back`). Of up to eight blocks all choices are compared; of more, blocks are
dropped one at a time.

Its output runs fewer multiplications, the same for every image. It still holds the weights of the
blocks that it drops.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import Field
from torch import Tensor, nn

from rnp.batch_norm_statistics import estimate_statistics
from rnp.dropped_blocks import BlockAdaptation, BlockCost, adapted
from rnp.execution.routed_run import RoutedRun
from rnp.prefix_cost import Actions
from rnp.routed_network import FixedRoute, RoutedNetwork
from rnp.static_prefix import BATCH_SIZE, IMAGES_FOR_GREEDY, MOST_COMPARED, best_of_all, shrunk
from testbed.checkpoint import Checkpoint
from testbed.data import Images, Splits, normalise
from testbed.held_back import divided
from testbed.method import Run
from testbed.prediction import autocast, evaluating


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
        actions = best_blocks(network, images, data, run, cost, budget)
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


def best_blocks(
    network: RoutedNetwork,
    images: Images,
    data: Splits,
    run: Run,
    cost: BlockCost,
    budget: float,
) -> Actions:
    """The actions that the budget allows, of least loss on images: 1 for each block that stays."""
    n_blocks = len(network.flow.blocks)
    if 2**n_blocks <= MOST_COMPARED:
        losses = _losses(network, images, data, run, [(0, 1)] * n_blocks)
        return best_of_all(losses, cost, budget)
    some = images[:IMAGES_FOR_GREEDY]

    def loss(actions: Actions) -> float:
        return _losses(network, some, data, run, [(action,) for action in actions]).item()

    return shrunk(loss, cost, budget, (1,) * n_blocks, lambda _, action: 0 if action else None)


@torch.no_grad()
def _losses(
    network: RoutedNetwork,
    images: Images,
    data: Splits,
    run: Run,
    choices: list[tuple[int, ...]],
) -> Tensor:
    """Mean cross-entropy of images for every combination: a dimension of choices for each block."""
    total = torch.zeros([len(actions) for actions in choices], dtype=torch.float64)
    with evaluating(network), autocast(run.fine_tuning.precision, run.device):
        for part in images.batches(BATCH_SIZE):
            pixels, labels = part.pixels.to(run.device), part.labels.to(run.device)
            begun = network.started(normalise(pixels, data.mean, data.std))
            losses = [
                F.cross_entropy(end.logits.float(), labels, reduction="sum").double()
                for end in _ends(begun, choices)
            ]
            total += torch.stack(losses).cpu().view(total.shape)
    return total / len(images)


def _ends(run: RoutedRun, choices: list[tuple[int, ...]]) -> list[RoutedRun]:
    """Runs that have logits, of every combination of actions; the last one varies fastest."""
    if run.observe() is None:
        return [run]
    ends = []
    for action in choices[len(run.actions)]:
        fork = run.fork()
        fork.act(torch.full((len(run.images),), action, device=run.images.device))
        ends += _ends(fork, choices)
    return ends
