"""Network routing: Rao, Lu, Lin, Zhou 2019, "Runtime network routing for efficient image
classification", IEEE TPAMI 41(10), the extension of RNP to the paths of a network.

A decision network looks at each image, residual block by residual block, and lets the backbone
compute a block's branch, or take the identity in its place. It learns by RNP's Q-learning from the
loss of the image and a penalty for what each path costs; backbone and decision network are trained
in turn.

Where we differ: the paper could not be had but for its abstract. It routes among several parallel
branches; networks as they are have one for each block, so that there are two actions. The identity
is an action only where the shortcut keeps the shape; blocks that change it are always computed. A
branch costs in proportion to its multiplications, the mean one p. All that RNP leaves open is as in
`rnp`. The backbone first learns to do without blocks drawn at random, within the same fine-tuning
epochs that every method gets. Batch norms of a branch see the images alone that take it, a few
images none; statistics are estimated anew before decisions are learnt, and at the end for the
network's own. Training's multiplications are reported as if every branch was computed.

With a budget, and blocks few enough for a table of all routes, learning begins at the best fixed
route. Begun where all is computed, it ends behind fixed routes of equal cost, since blocks are
given up one by one, and those that are best alone are not best together.

What a block saves an image hardly depends on what can be seen at it, so that decisions gain little;
`sweeps/residual_cifar.yaml` sets them beside `static_blocks`.

Its output runs fewer multiplications, each image its own number of them: the images that skip a
branch are left out of its batch.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from rnp.batch_norm_statistics import estimate_statistics
from rnp.dropped_blocks import BlockAdaptation, BlockCost, adapted, random_statistics
from rnp.learning.options import QLearning
from rnp.learning.qlearning import learn_decisions, meet_budget, tabulates
from rnp.rounds import affordable, epochs_per_round, report_round
from rnp.routed_network import RoutedNetwork
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run
from testbed.prediction import evaluating

LOOKED_AT = 4096  # training images at most whose every route is computed


class NetworkRouting(BlockAdaptation, QLearning):
    """Fine-tuning epochs left by the adaptation are shared evenly by the rounds."""

    price: Literal["group", "multiplications"] = "multiplications"
    """What p is paid for. multiplications: in proportion to those of the branch, the mean one's
    cost p. group: each branch alike."""
    learner: Literal["td", "cost_to_go"] = "cost_to_go"
    """As for `rnp`; there are many blocks, and few actions."""
    steps: int = Field(default=300, ge=1)
    """Batches learnt from. Of more than seven blocks each image of a batch costs passes through the
    backbone; ask for smaller batches then (64)."""
    q_learning_rate: float = Field(default=3e-3, gt=0)
    """Of AdamW; falls linearly to 0."""
    q_weight_decay: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Of AdamW, biases excepted. So high that few images alone do not decide what is learnt."""
    rounds: int = Field(default=1, ge=1, validate_default=True)  # against the budget, too
    """Rounds of teaching the decision network, then the backbone, in a schedule of its own each."""
    encoding: int = Field(default=16, ge=1)
    """Length of a block's encoding. With the sizes of `rnp` decisions cost as much as half a block
    of a small network."""
    hidden: int = Field(default=32, ge=1)
    """Length of the recurrent state; as for the encoding."""

    _affordable = field_validator("rounds")(affordable)

    def costs(self, network: Any, data: Splits) -> BlockCost:
        """What the actions of a `RoutedNetwork` cost."""
        return BlockCost(network, data)

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._checked(dense, data)

    def skeleton(self, dense: nn.Module) -> RoutedNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        return RoutedNetwork(dense, self.encoding, self.hidden)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `RoutedNetwork` made of `model` (see `PruningMethod`).

        Resumes after the last complete round, if the run's folder holds a checkpoint.
        """
        network = self._checked(model, data).to(run.device)
        epochs = epochs_per_round(self.rounds, run.fine_tuning.epochs, self.adaptation)
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        if completed < 0:
            network = adapted(model, data, run, self.adaptation, self.encoding, self.hidden)
            if self.keep_multiplications is not None:
                network.decision.favour_all()  # where there is no table
            completed = 0
            checkpoint.save(completed, network)
        for number in range(completed + 1, self.rounds + 1):
            # The backbone is fixed.
            seen = random_statistics(network, data, run) if number > 1 else 0
            looked_at = self._looked_at(network, data, run)
            learned = learn_decisions(network, looked_at, self, run, number, from_best_fixed=True)
            # The decision network is fixed.
            run.fine_tune(network, data, epochs[number - 1])
            seen += estimate_statistics(network, data, run)
            if number == self.rounds and self.keep_multiplications is not None:
                learned = meet_budget(network, data, self, learned, run)
            report_round(network, data, run, number, learned, seen, shares_computed)
            checkpoint.save(number, network)
        return network.eval()

    def _looked_at(self, network: RoutedNetwork, data: Splits, run: Run) -> Splits:
        """`data` with few training images, if a table of all their routes is made."""
        images = data.train.drawn(LOOKED_AT, torch.Generator().manual_seed(run.seed))
        some = replace(data, train=images)
        return some if tabulates(network, some, self) else data

    def _checked(self, dense: nn.Module, data: Splits) -> RoutedNetwork:
        network = self.skeleton(dense)
        self.costs(network, data)  # which runs every block
        self.check(network, data)
        return network


@torch.no_grad()
def routes(network: RoutedNetwork, images: Tensor) -> Tensor:
    """The actions that the network takes on normalised images: (n, blocks) int64."""
    with evaluating(network):
        return torch.stack(network.routed_run(images).actions, dim=1)


def shares_computed(network: RoutedNetwork, images: Tensor) -> dict[str, float]:
    """Which share of normalised images takes each block."""
    shares = routes(network, images).double().mean(dim=0).tolist()
    names = [block.name for block in network.flow.blocks]
    return {f"computed.{name}": share for name, share in zip(names, shares, strict=True)}
