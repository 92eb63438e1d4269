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
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from rnp.adaptation import epochs_per_round
from rnp.batch_norm_statistics import estimate_statistics
from rnp.dropped_blocks import BlockAdaptation, BlockCost, adapted, random_statistics
from rnp.learning.loss_table import MOST_COMBINATIONS, n_combinations
from rnp.learning.options import QLearning
from rnp.learning.qlearning import Learned, learn_decisions, meet_budget
from rnp.routed_network import RoutedNetwork
from testbed.checkpoint import Checkpoint
from testbed.cost import count_multiplications
from testbed.data import Splits, normalise
from testbed.method import Run
from testbed.prediction import evaluate, evaluating

LOOKED_AT = 4096  # training images at most whose every route is computed
IMAGES_COUNTED = 256  # validation images whose multiplications are counted after each round


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
    """Of AdamW, biases excepted. Images are told apart only where many show that it pays."""
    rounds: int = Field(default=1, ge=1, validate_default=True)  # against the budget, too
    """Rounds of teaching the decision network, then the backbone, in a schedule of its own each."""
    encoding: int = Field(default=16, ge=1)
    """Length of a block's encoding. With the sizes of `rnp` decisions cost as much as half a block
    of a small network."""
    hidden: int = Field(default=32, ge=1)
    """Length of the recurrent state; as for the encoding."""

    @field_validator("rounds")
    @classmethod
    def _affordable(cls, rounds: int, info: ValidationInfo) -> int:
        """Refuses too many rounds already when a sweep file is checked (see `PruningMethod`)."""
        if info.context and "fine_tuning" in info.context and "adaptation" in info.data:
            epochs_per_round(rounds, info.context["fine_tuning"].epochs, info.data["adaptation"])
        return rounds

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
                network.decision.favour_all()  # from where the penalty begins
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
            self._report(network, data, run, number, learned, seen)
            checkpoint.save(number, network)
        return network.eval()

    def _looked_at(self, network: RoutedNetwork, data: Splits, run: Run) -> Splits:
        """`data` with as many training images as a table of all routes may have."""
        if n_combinations(network.decision) > MOST_COMBINATIONS:
            return data
        generator = torch.Generator().manual_seed(run.seed)
        images = torch.randperm(len(data.train), generator=generator)[:LOOKED_AT]
        return replace(data, train=data.train.select(images))

    def _checked(self, dense: nn.Module, data: Splits) -> RoutedNetwork:
        network = self.skeleton(dense)
        self.costs(network, data)  # which runs every block
        self.check(network, data)
        return network

    def _report(
        self,
        network: RoutedNetwork,
        data: Splits,
        run: Run,
        number: int,
        learned: Learned,
        seen: int,
    ) -> None:
        """`seen`: images that went through the backbone for its statistics."""
        pixels = data.validation[:IMAGES_COUNTED].pixels.to(run.device)
        images = normalise(pixels, data.mean, data.std)
        shares = routes(network, images).double().mean(dim=0).tolist()
        precision = run.fine_tuning.precision
        accuracy = evaluate(network, data.validation, data, device=run.device, precision=precision)
        run.report(
            {
                "round": number,
                "round_val_accuracy": accuracy,
                "round_multiplications": count_multiplications(network, images).multiplications,
                "alpha": learned.alpha,
                "p": learned.p,
                "penalty_in_cross_entropy": learned.penalty_in_cross_entropy,
                "q_learning_epochs": (learned.backbone_images + seen) / len(data.train),
                **{
                    f"computed.{block.name}": share
                    for block, share in zip(network.flow.blocks, shares, strict=True)
                },
            }
        )


@torch.no_grad()
def routes(network: RoutedNetwork, images: Tensor) -> Tensor:
    """The actions that the network takes on normalised images: (n, blocks) int64."""
    with evaluating(network):
        return torch.stack(network.routed_run(images).actions, dim=1)
