"""Policy-gradient pruning: Yang, Xu, "From rule-based to learning-based network pruning"; after
Huang, Zhou, You, Neumann 2018, "Learning to prune filters in convolutional neural networks", WACV,
arXiv 1801.07365.

Layer by layer, from low to high, an agent reads the filters of a layer and gives each a probability
of being kept. It learns by REINFORCE from the accuracy under masks that it samples, and from how
few filters these keep; then the channels it does without are removed and the network is fine-tuned.
Layers that write the same channels, as those of a residual network do, have one agent: it reads the
weights of all of them that make a channel.

Where we differ: the report prints the accuracy term with the sign of the drop the wrong way round,
and its gradient without the logarithm; both are mended. Batch norm is estimated anew for every mask
and for the dense network that it is compared with (see `batch_norm_statistics`; Huang et al.
fine-tune each mask instead): with the whole network's statistics a mask looks 5 to 40 times worse
than it is. The layers that read what goes are refitted by least squares for every mask (`refit`;
He, Zhang, Sun 2017), as the chosen one's then are: half of conv 6 of a VGG-16 costs 3.0 points
then, 6.6 else. `phi` is 1 at most, or agents buy luck on the images that they learn from. A layer's
drop is counted from the dense network, or from the network as it comes to that layer where this is
less accurate (see `Rewards`).

Agents learn from a part of the validation images (`reward_share`); every accuracy that is reported
is of the others (`held_back`). At the end one of a few masks is chosen: from up to ten moments of
the learning the most probable mask and the best one sampled; and as an agent may go too far, masks
of the highest scores, from as many channels as its last most probable one keeps up to all. That is
done on training images, which no agent learnt from, and of which there are enough: on a thousand
images luck chooses among thirty masks. A drop is a third to a half larger there than elsewhere (4.2
points for that half), so that the bound is rather kept than spent.

The report leaves agent, optimiser, baseline and schedule open: here a small network reads each
filter by itself, probabilities start at a half, and a little exploration stays. Masks count by the
rank of their reward within the step, less the mean rank: a mask that loses a filter which matters
is so far below the others that it would drown the gain of losing one which does not. Half of the
fine-tuning epochs are spread evenly over the layers before the last (if they are fewer, some layers
go without), the others are one schedule after the last layer. Early stopping looks at that one
alone, as only then the network costs what it will.

Its `val_accuracy_before_finetuning` is that with the first layer pruned, as for `thinet`.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from baselines.channels.batch_norm_statistics import (
    estimate_statistics,
    normalised_batches,
    statistics_images,
)
from baselines.channels.channel_groups import (
    ChannelGroup,
    ChannelGroups,
    Keep,
    Scope,
    channel_groups,
)
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.contributions import Sampler
from baselines.channels.group_norms import group_filters
from baselines.channels.refit import Refit
from baselines.channels.reinforce import Remembered, learn
from baselines.channels.reward_evaluation import evaluation, evaluation_of_masks
from testbed.checkpoint import Checkpoint
from testbed.cost import count_parameters
from testbed.data import Images, Splits
from testbed.held_back import divided
from testbed.method import Run
from testbed.names import unknown
from testbed.prediction import evaluate

# Training images that choose among the masks that were learnt: for each reward image, and at most.
CHOSEN_BY, MOST_CHOSEN_BY = 2, 4000
REFITTED_ON, POSITIONS = 1000, 10  # training images at most, and places that each gives


class PolicyGradient(BaseModel):
    """The drop bound moves along the frontier; the other options say how well agents learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop_bound: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Drop of accuracy that makes a mask worthless, in percentage points.",
    )
    samples: int = Field(default=10, ge=2, description="Masks that each step compares.")
    steps: int = Field(default=200, ge=1, description="Steps that each layer's agent learns for.")
    layers: Literal["all", "one"] = Field(
        default="all", description="Every prunable layer from low to high, or a single one."
    )
    layer: str | None = Field(default=None, description="The layer to prune where layers is one.")
    reward_share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Of the validation images: those that give rewards.",
    )
    refit: bool = Field(
        default=True,
        description="Refit the layers that read what goes, by least squares, for every mask.",
    )
    scope: Scope = "inside_blocks"
    keep: Keep = ()

    @model_validator(mode="after")
    def _layer_is_named(self) -> "PolicyGradient":
        if (self.layers == "one") != (self.layer is not None):
            raise ValueError(
                "give layer, the name of one, with layers: one, and only then; got layers "
                f"{self.layers!r} and layer {self.layer!r}"
            )
        return self

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that give no rewards (see `HoldsBack`)."""
        return divided(data, self.reward_share, "reward_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._layers(self._groups(dense, example_images(data, torch.device("cpu"))))
        self.held_back(data)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned after each layer (see `PruningMethod`).

        Resumes after the last complete layer, if the run's folder holds a checkpoint.

        Raises:
            ValueError: before any work, if no layer can be pruned, the one named is not one of
                them, the validation images cannot be divided, or the dense network is no better
                than chance.
                At the end, if no channel was removed from any layer; with `layers: one` that is a
                result.
        """
        network = copy.deepcopy(model).to(run.device).eval()
        example = example_images(data, run.device)
        groups = self._groups(network, example)
        layers = self._layers(groups)
        rewarding, held_back = divided(data, self.reward_share, "reward_share")
        statistics = statistics_images(data, len(rewarding), run.seed)
        dense = copy.deepcopy(network)
        _estimate(dense, statistics, data, run)
        accuracy = _better_than_chance(dense, rewarding, data, run)
        learning = Judging(rewarding, statistics, accuracy)
        # The seed of no layer: its refit would have learnt from the same images.
        generator = torch.Generator().manual_seed(1000 * run.seed + len(layers))
        n_choosing = min(CHOSEN_BY * len(rewarding), MOST_CHOSEN_BY)
        chosen_by = data.train.drawn(n_choosing, generator)
        choosing = Judging(chosen_by, statistics, _accuracy(dense, chosen_by, data, run))
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        for name, removed in checkpoint.notes:
            groups = groups.after({name: removed})
        for number, name in enumerate(layers):
            if number <= completed:
                continue
            seed = 1000 * run.seed + number
            refit = self._refit_of(network, groups[name], data, run, seed)
            rewards_by = partial(
                self._rewards, network, groups, name, data=data, run=run, refit=refit
            )
            filters = group_filters(network, groups[name]).to(run.device)
            masks, n_learnt_from = self._learnt(filters, rewards_by(learning), seed)
            kept, reward, n_chosen_by = best_of(masks, rewards_by(choosing))
            removed = (~kept).nonzero().flatten().tolist()
            if removed:
                if refit is not None:
                    refit(network, {name: removed})
                network = remove_channels(network, example, groups, {name: removed})
                groups = groups.after({name: removed})
                _estimate(network, statistics, data, run)
            checkpoint.notes.append([name, removed])
            is_last = number + 1 == len(layers)
            due = epochs_by(number + 1, len(layers), run.fine_tuning.epochs)
            run.fine_tune(network, held_back, due - run.epochs_spent, judged=is_last)
            run.report(
                {
                    "layer": number + 1,
                    "layer_reward": reward,
                    "reward_epochs": (n_learnt_from + n_chosen_by) / len(data.train),
                    f"channels_kept.{name}": len(kept) - len(removed),
                    f"channels_pruned.{name}": len(removed),
                }
            )
            checkpoint.save(number, network)
        if self.layer is None and count_parameters(network) == count_parameters(model):
            raise ValueError(
                f"Nothing was removed: within a drop of {self.drop_bound:g} points no mask was "
                f"better than all channels of {', '.join(layers)}. Raise drop_bound, or steps "
                f"(now {self.steps}) so that the agents find more."
            )
        return network

    def _layers(self, groups: ChannelGroups) -> list[str]:
        """The groups that are pruned, in the order in which they run."""
        if self.layer is None:
            return list(groups)
        if self.layer not in groups:
            raise ValueError(unknown("prunable layer", self.layer, groups))
        return [self.layer]

    def _groups(self, network: nn.Module, example: Tensor) -> ChannelGroups:
        return channel_groups(network, example, scope=self.scope, keep=self.keep)

    def _refit_of(
        self, network: nn.Module, group: ChannelGroup, data: Splits, run: Run, seed: int
    ) -> Refit | None:
        """The refit of what reads a group, if that is asked for."""
        if not self.refit:
            return None
        sampler = Sampler.of_run(network, data, run, REFITTED_ON, POSITIONS)
        generator = torch.Generator().manual_seed(seed)
        images = sampler.drawn(generator)
        run.report({"statistics_epochs": len(images) / len(data.train)})
        return Refit(network, {group.name: group}, sampler, images, generator)

    def _learnt(self, filters: Tensor, rewards: "Rewards", seed: int) -> tuple[Tensor, int]:
        """Masks of an agent that learnt, and how many images that took.

        As with `best_of`, what `rewards` keep in memory goes with them.
        """
        return learn(filters, rewards, self.samples, self.steps, seed), rewards.n_images

    def _rewards(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        name: str,
        judging: "Judging",
        *,
        data: Splits,
        run: Run,
        refit: Refit | None,
    ) -> "Rewards":
        """The rewards of masks of a group. They keep what lies below its readers in memory."""
        evaluation = evaluation_of_masks(
            network,
            groups,
            name,
            judging.images,
            judging.statistics,
            data,
            device=run.device,
            precision=run.fine_tuning.precision,
            refit=refit,
        )
        accuracies = Remembered(evaluation, evaluation.images_per_mask)
        return Rewards(accuracies, judging.dense_accuracy, self.drop_bound)


@dataclass(frozen=True)
class Judging:
    """What masks of every layer are judged by."""

    images: Images
    statistics: Images
    """Batch norm is estimated from these."""
    dense_accuracy: float
    """On the images, with batch norm estimated likewise."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of a group's masks.

    A drop is counted from the dense network, or from this one with all channels where that is less
    accurate: what other layers lost is not charged to this one. Else a layer that could lose most
    of its channels for nothing would keep all, since any mask is beyond the bound before the last
    fine-tuning has given back what earlier layers cost.
    """

    accuracies: Remembered
    dense_accuracy: float
    """On the same images."""
    drop_bound: float
    """In percentage points."""

    @property
    def n_images(self) -> int:
        """How many images masks have taken through the network."""
        return self.accuracies.n_images

    def __call__(self, masks: Tensor) -> Tensor:
        """(masks,) float64, of masks (masks, channels) bool."""
        with_all = self.accuracies(torch.ones_like(masks[:1])).item()
        least = min(self.dense_accuracy, with_all)
        return rewards(self.accuracies(masks), least, self.drop_bound, masks)


def best_of(masks: Tensor, rewards: Rewards) -> tuple[Tensor, float, int]:
    """The mask that earns most, what it earns, and how many images that took."""
    values = rewards(masks)
    return masks[values.argmax()], values.max().item(), rewards.n_images


def epochs_by(layer: int, n_layers: int, epochs: int) -> int:
    """How many of all epochs are spent by the end of a layer, from 1: half of them by the last but
    one."""
    return epochs if layer == n_layers else epochs // 2 * layer // (n_layers - 1)


def rewards(accuracies: Tensor, unpruned: float, drop_bound: float, masks: Tensor) -> Tensor:
    """`phi * psi`: what is left of the drop bound, times filters over filters kept.

    `phi = 1 - (a* - a) / b`: 1 where the accuracy a is that without pruning, a*, or better, 0 where
    it has dropped by b.

    Args:
        accuracies: (masks,), fractions.
        unpruned: a*, on the same images.
        drop_bound: in percentage points.
        masks: (masks, filters) bool, one filter kept at least.

    Source: Yang and Xu, equations 1 to 3, with the sign of the drop in equation 1 mended, and
    `phi` 1 at most.
    """
    phi = (1 - 100 * (unpruned - accuracies) / drop_bound).clamp(max=1)
    psi = masks.shape[1] / masks.sum(dim=1)
    return phi * psi


def _estimate(network: nn.Module, statistics: Images, data: Splits, run: Run) -> None:
    """Gives `network` batch-norm statistics of its own."""
    batches = normalised_batches(network, statistics, data, run.device)
    with evaluation(run.device, run.fine_tuning.precision):
        estimate_statistics(network, batches)


def _accuracy(network: nn.Module, images: Images, data: Splits, run: Run) -> float:
    return evaluate(network, images, data, device=run.device, precision=run.fine_tuning.precision)


def _better_than_chance(network: nn.Module, images: Images, data: Splits, run: Run) -> float:
    """The accuracy on `images`.

    Raises:
        ValueError: if always giving the commonest class would do as well, but for luck.
    """
    accuracy = _accuracy(network, images, data, run)
    chance = images.labels.bincount().max().item() / len(images)
    luck = 2 * math.sqrt(chance * (1 - chance) / len(images))
    if accuracy <= chance + luck:
        raise ValueError(
            f"The dense network is no better than chance: of {len(images)} validation images it "
            f"classifies {accuracy:.1%} right, always giving the commonest class {chance:.1%} (two "
            f"standard errors are {luck:.1%}). Rewards are made of accuracy: expected a trained "
            "network. Train it for longer, or take more validation images."
        )
    return accuracy
