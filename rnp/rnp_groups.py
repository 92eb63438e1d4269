"""RNP in groups: runtime neural pruning (Lin, Rao, Lu, Zhou 2017, "Runtime neural pruning", NIPS
30) with what was learnt about it here.

The network is made of unequal groups of channels, without weights between groups: group g of every
layer reads group g of the layer before, the first layer reads the image. A classifier stands at the
end of each. After a group a decision network looks at the answer so far, and an action computes the
next group in all layers, or stops. It learns by Q-learning from the image's loss and the penalty p.

Where we differ from the paper: it decides conv by conv, on prefixes that share their weights, from
pooled feature maps. Of an image that needs more these say nothing on CIFAR-10 (area under the curve
.50 to .51), and the margin between the two most probable classes much (.81, by `python -m
benchmarks.deciding_signals --epochs 4`). So the state is that margin beside what the group's
classifier reads, carried on by the recurrent cell, and groups share nothing. The answer is the
average of the groups' log-probabilities with fitted weights, with which `cascade` won; a classifier
over all groups' features was not tried. Groups take nothing from the dense network but its
architecture: they are trained from scratch in one training, as long as `vanilla` is, each by its
own loss. That serves all penalties and budgets: see `shared_stage`. Going on costs in proportion to
the group's multiplications, the mean group p. Actions are few and their outcome is known, so that
exact returns are learnt, and nothing is explored. Decisions and weights are learnt from training
images, augmented once, as there are more of them.

Its output runs fewer multiplications, each image its own number of them.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from rnp.grouped_network import GroupedNetwork, observed
from rnp.learning.budget import Budget
from rnp.learning.options import check_one_price
from rnp.learning.stopping import Looks, actions_of, learn_to_stop
from rnp.structure.thin_network import thin_network
from testbed.cost import multiplications_by_layer
from testbed.data import Images, Splits, normalise
from testbed.looks import average, fitted_weight
from testbed.method import Run
from testbed.new_weights import draw_anew
from testbed.prediction import autocast, evaluating, memory_format_for
from testbed.shared_stage import obtain_stage

LOOKED_AT, BATCH_SIZE = 20_000, 256  # images at most that decisions are learnt from, or met on


class RNPGroups(BaseModel):
    """Groups, and what another one must be worth."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    groups: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.35, 0.9), min_length=2)
    """Each group's share of the dense network's channels in every layer, in the order in which they
    are computed. Together they may have more channels than the dense network."""
    keep_multiplications: float | None = Field(default=None, gt=0, le=1)
    """In place of p: share of the dense network's multiplications to come to, in the mean over
    images and with the decisions' own. The p for it is found while learning, and met on validation
    images without their labels."""
    p: float | None = Field(default=None, le=0, allow_inf_nan=False)
    """Penalty of the mean group beyond the first; -0.1 where no budget is given, as in the paper.
    Only |p| / alpha matters: what it must save in cross-entropy."""
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of an image's cross-entropy. None: so that it weighs 1 in the mean over images and
    groups to stop after."""
    steps: int = Field(default=1000, ge=1)
    """Batches learnt from; they take seconds, as the groups' answers are kept."""
    batch_size: int = Field(default=256, ge=1)
    """Images a batch; losses of single images vary much."""
    q_learning_rate: float = Field(default=3e-3, gt=0)
    """Of AdamW; falls linearly to 0."""
    q_weight_decay: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Of AdamW, biases excepted: images are told apart only where many show that it pays."""
    encoding: int = Field(default=16, ge=1)
    """Length of the encoding of what is decided from; the margin tells most."""
    hidden: int = Field(default=32, ge=1)
    """Length of the recurrent state; as for the encoding."""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        check_one_price(self.p, self.alpha, self.keep_multiplications)
        return self

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._budget(GroupCost(self._grouped(dense, data), dense, data))

    def skeleton(self, dense: nn.Module) -> GroupedNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        whole = [copy.deepcopy(dense) for _ in self.groups]
        return GroupedNetwork(whole, self.encoding, self.hidden)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `GroupedNetwork` of `model`'s architecture (see `PruningMethod`).

        Raises:
            ValueError: before any work, as `check_network`.
        """
        network = self._grouped(model, data)
        cost = GroupCost(network, model, data)
        budget = self._budget(cost)
        draw_anew(network.decision, run.seed)
        groups = obtain_stage(self, model, data, run)
        network.load_state_dict({**network.state_dict(), **groups})
        self._learn(network.to(run.device), data, run, cost, budget)
        return network.eval()

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        """See `SharesStage`."""
        return frozenset({"groups"})

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        """The tensors of the groups, trained (see `SharesStage`)."""
        network = self._grouped(model, data)
        draw_anew(nn.ModuleList([network.bodies, network.classifiers]), run.seed)
        together = AllGroups(network.to(run.device), run)
        run.train_from_scratch(together, data, together.apart)
        tensors = network.state_dict()
        return {name: tensors[name] for name in tensors if not name.startswith("decision.")}

    def _grouped(self, dense: nn.Module, data: Splits) -> GroupedNetwork:
        """Groups of the sizes asked for, on the CPU; their weights mean nothing."""
        black = torch.zeros(1, *data.input_shape)
        model = copy.deepcopy(dense).cpu()
        thin = [thin_network(model, share, black) for share in self.groups]
        return GroupedNetwork(thin, self.encoding, self.hidden)

    def _budget(self, cost: "GroupCost") -> Budget | None:
        """
        Raises:
            ValueError: if the budget is below the first group, or above all groups together.
        """
        share = self.keep_multiplications
        if share is None:
            return None
        least, most = (cost.least / cost.dense, cost.most / cost.dense)
        if share < least:
            raise ValueError(
                f"keep_multiplications {share:g} cannot be reached: the first group and the first "
                f"decision take {least:.3g} of the multiplications. Ask for that or more, or for a "
                "narrower first group."
            )
        if share > most:
            raise ValueError(
                f"keep_multiplications {share:g} cannot be spent: all groups together take "
                f"{most:.3g} of the multiplications. Ask for that or less, or for wider groups."
            )
        return Budget(cost, share)

    def _learn(
        self,
        network: GroupedNetwork,
        data: Splits,
        run: Run,
        cost: "GroupCost",
        budget: Budget | None,
    ) -> None:
        """Learns the weights of the groups' answers and the decisions, and meets the budget."""
        generator = torch.Generator().manual_seed(run.seed)
        decision, price = network.decision, cost.prices()
        images = data.train.drawn(LOOKED_AT, generator)
        answers = answered(network, images, data, run, generator)
        fit_weights(network, answers, images.labels.cpu())
        looks = answers.looks(network, images.labels, run.device)
        learned = learn_to_stop(decision, looks, self, generator, run.report, price, budget)
        as_met = answered(network, data.validation[:LOOKED_AT], data, run)
        seen = as_met.observed(network, run.device)
        p = learned.p
        if budget is not None:  # without labels
            p = 0.0 - budget.settle(decision, lambda: actions_of(decision, seen), -p, price)
        going = actions_of(decision, seen).cumprod(dim=1).double().mean(dim=0).tolist()
        run.report(
            {
                "alpha": learned.alpha,
                "p": p,
                "penalty_in_cross_entropy": abs(p) / learned.alpha,
                "q_learning_epochs": (len(answers) + len(as_met)) / len(data.train),
                **{f"reached.group{number}": share for number, share in enumerate(going, 2)},
            }
        )


class AllGroups(nn.Module):
    """All groups of a network, as they are trained: together, but each by its own loss."""

    def __init__(self, network: GroupedNetwork, run: Run) -> None:
        super().__init__()
        self.network = network
        distillation = run.fine_tuning.distillation or run.training.distillation
        self._labels_share = 1 - distillation.weight if distillation else 1.0
        self._product: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """In training, the sum of the groups' log-probabilities (n, classes); else their mean."""
        looked = [self.network.look(group, images)[1] for group in range(self.network.n_groups)]
        self._product = torch.stack(looked).sum(dim=0)
        return self._product if self.training else (self._product / len(looked)).log_softmax(dim=1)

    def apart(self, _: nn.Module, __: float) -> Tensor:
        """What makes the cross-entropy of the sum the sum of the groups' own cross-entropies."""
        assert self._product is not None, "forward comes first"
        return -self._labels_share * self._product.logsumexp(dim=1).mean()


class GroupCost:
    """Multiplications of an image that stops somewhere, its decisions included (see `Costs`)."""

    def __init__(self, network: GroupedNetwork, dense: nn.Module, data: Splits) -> None:
        black = torch.zeros(1, *data.input_shape)
        self.dense = multiplications_by_layer(dense, black).total()
        both = zip(network.bodies, network.classifiers, strict=True)
        each = [multiplications_by_layer(nn.Sequential(*parts), black).total() for parts in both]
        deciding = [network.decision.multiplications(step) for step in range(len(each) - 1)]
        first, *others = [a + b for a, b in zip(each, [*deciding, 0], strict=True)]
        self.least, self.most = first, first + sum(others)
        self._added = torch.tensor(others, dtype=torch.float64)

    def of_images(self, actions: Tensor) -> Tensor:
        """Multiplications of each image, (n,) float64; what follows a stop counts for nothing."""
        return self.least + actions.cumprod(dim=1).double() @ self._added.to(actions.device)

    def prices(self) -> Tensor:
        """What each group beyond the first adds, (T,), relative to the mean one."""
        return (self._added / self._added.mean()).float()


@dataclass(frozen=True)
class Answers:
    """What each group makes of n images, on the CPU."""

    features: list[Tensor]
    """Of each group, (n, features): what its classifier reads."""
    looked: list[Tensor]
    """Of each group, (n, classes) log-probabilities."""

    def __len__(self) -> int:
        return len(self.looked[0])

    def averages(self, weights: Tensor) -> list[Tensor]:
        """The answers (n, classes) after each group."""
        found = [self.looked[0]]
        for look, weight in zip(self.looked[1:], weights[1:].cpu(), strict=True):
            found.append(average(found[-1], look, weight))
        return found

    def observed(self, network: GroupedNetwork, device: torch.device) -> list[Tensor]:
        """What is decided from, with the network's weights; of each step, (n, C)."""
        answers = self.averages(network.weights)
        before = zip(self.features[:-1], answers[:-1], strict=True)
        return [observed(*each).to(device) for each in before]

    def looks(self, network: GroupedNetwork, labels: Tensor, device: torch.device) -> Looks:
        """What is decided from, and what is lost."""
        answers = self.averages(network.weights)
        losses = [F.nll_loss(each, labels.cpu(), reduction="none") for each in answers]
        return Looks(self.observed(network, device), torch.stack(losses, dim=1).to(device))


@torch.no_grad()
def answered(
    network: GroupedNetwork,
    images: Images,
    data: Splits,
    run: Run,
    augmenting: torch.Generator | None = None,
) -> Answers:
    """Looks at images with every group, in evaluation mode.

    Args:
        augmenting: draws their augmentation; None for none.
    """
    each: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(network.n_groups)]
    layout = memory_format_for(network, data, run.device)
    with evaluating(network), autocast(run.fine_tuning.precision, run.device):
        for part in images.batches(BATCH_SIZE):
            part = part.to(run.device)
            pixels = part.pixels if augmenting is None else data.augmented(part, augmenting)
            inputs = normalise(pixels, data.mean, data.std, memory_format=layout)
            for group, found in enumerate(each):
                found.append(network.look(group, inputs))
    features, looked = zip(
        *([torch.cat(parts).cpu() for parts in zip(*found, strict=True)] for found in each),
        strict=True,
    )
    return Answers([*features], [*looked])


def fit_weights(network: GroupedNetwork, answers: Answers, labels: Tensor) -> None:
    """Gives each group's answer the weight in the average of least cross-entropy."""
    before = answers.looked[0]
    for number, look in enumerate(answers.looked[1:], 1):
        weight = fitted_weight(before, look, labels)
        network.weights[number] = weight
        before = average(before, look, weight)
