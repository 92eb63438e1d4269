"""ThiNet: Luo, Wu, Lin 2017, "ThiNet: A filter level pruning method for deep neural network
compression", ICCV, arXiv 1707.06342; the pruning-methods report.

Removes channels group by group, from low to high, after the training. The layers that read a group
decide what goes: the channels whose summed contribution to sampled outputs of them is smallest,
chosen greedily. Those that stay are scaled by least squares to make up for the others, the scales
go into the readers' weights, and the network is fine-tuned a little before the next group is looked
at.

Where we differ: the greedy choice is made on the Gram matrix of the contributions, in float64,
which gives the picks of the paper's loop over the samples thousands of times faster. Images are
drawn from all classes together, not ten of each. Where several layers read a channel, as in a
residual network, their errors are summed for the choice, each as a share of the sum of squares of
its channels' contributions so that none outweighs the others, and each layer gets scales of its
own; the paper's chains have one. Of an attention a channel is a head. A reader whose weight is
computed from others (weight norm), or tied to one that writes the channels, has no say and stays
unscaled; where all are of that kind, the channels with the smallest L1 norms go, as by `l1_filter`.
In `rounds` (the pruning-methods report, which says no more of them) what is kept shrinks by the
same factor each time, as for `l1_filter`. The report prunes linear layers too: an option.

Its `val_accuracy_before_finetuning` is that with the first group pruned, before the fine-tuning
that follows it: a network with all groups pruned and none fine-tuned never exists.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroup, ChannelGroups, channel_groups
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.contributions import (
    Gram,
    SampledReader,
    Sampler,
    can_be_sampled,
)
from baselines.channels.group_norms import l1_norms
from baselines.channels.keep_ratio import Amount, KeepAmount
from baselines.channels.rounds import Rounds, epochs_per_round
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run

# Of the terms that make up a candidate's value: two that differ by less differ by rounding alone.
ROUNDING = 1e-12
# Of the largest eigenvalue of a Gram matrix: directions below are noise of float32 activations.
NOISE = 1e-10


class ThiNet(KeepAmount):
    """One of both amounts, a keep ratio of 0.5 where neither is given; reached after all rounds."""

    rounds: Rounds = 1
    images: int = Field(
        default=1000,
        ge=1,
        description="Training images sampled for a layer; all if there are less.",
    )
    positions: int = Field(
        default=10,
        ge=1,
        description="Outputs of the next layer sampled per image, the paper's 10; more where there "
        "would be fewer samples than channels.",
    )
    epochs_per_layer: int | None = Field(
        default=None,
        ge=0,
        description="Fine-tuning epochs after each layer; the last of a round also gets what is "
        "left. Null: half of a round's are spread over the layers before its last.",
    )
    linear_layers: bool = Field(default=False, description="Thin linear layers by the ratio too.")

    @field_validator("epochs_per_layer")
    @classmethod
    def _affordable(cls, epochs_per_layer: int | None, info: ValidationInfo) -> int | None:
        """Refuses what not even one layer could get when a sweep file is checked."""
        if info.context and "fine_tuning" in info.context and "rounds" in info.data:
            epochs = info.context["fine_tuning"].epochs
            _epochs_after_layers(info.data["rounds"], 1, epochs, epochs_per_layer)
        return epochs_per_layer

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        example = example_images(data, torch.device("cpu"))
        self._check_samples(dense, self.amount(dense, example), len(data.train))

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned after each layer (see `PruningMethod`).

        Resumes after the last complete layer, if the run's folder holds a checkpoint.
        """
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        amount = self.amount(network, example)
        channels = {name: group.channels for name, group in amount.groups.items()}
        epochs = _epochs_after_layers(
            self.rounds, len(channels), run.fine_tuning.epochs, self.epochs_per_layer
        )
        self._check_samples(network, amount, len(data.train))
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        groups = amount.groups
        for name, removed in checkpoint.notes:
            groups = groups.after({name: removed})
        sampler = Sampler.of_run(network, data, run, self.images, self.positions)
        for step, (number, name) in enumerate(product(range(1, self.rounds + 1), channels)):
            if step <= completed:
                continue
            to_keep = amount.kept_after(name, number / self.rounds)
            surplus = amount.kept_after(name, (number - 1) / self.rounds) - to_keep
            if surplus:
                seed = 1000 * run.seed + step
                removed = self._choice(network, groups[name], surplus, sampler, seed)
                network = remove_channels(network, example[:1], groups, {name: removed})
                groups = groups.after({name: removed})
                checkpoint.notes.append([name, removed])
            run.fine_tune(network, data, epochs[step])
            run.report({"round": number, f"channels_kept.{name}": to_keep / channels[name]})
            checkpoint.save(step, network)
        return network

    def groups(self, network: nn.Module, example: Tensor) -> ChannelGroups:
        """As for every channel method; linear layers too, where that is asked for."""
        return channel_groups(
            network, example, scope=self.scope, keep=self.keep, flat_linear=self.linear_layers
        )

    def _choice(
        self, network: nn.Module, group: ChannelGroup, n: int, sampler: Sampler, seed: int
    ) -> list[int]:
        """The `n` channels of a group that go; scales what its readers make of the others."""
        readers = sampler.readers(network, group, torch.Generator().manual_seed(seed))
        if not readers:
            return l1_norms(network, group).topk(n, largest=False).indices.tolist()
        total = _summed(readers)
        if not np.isfinite(total).all():
            raise ValueError(
                f"What layer {group.name!r} puts out is not finite: the network has diverged. "
                "Expected a trained one; train with a lower learning_rate."
            )
        removed = greedy_choice(total, n)
        for reader in readers:
            reader.scale(torch.from_numpy(least_squares_scales(reader.gram, removed)))
        return removed

    def _check_samples(self, network: nn.Module, amount: Amount, n_train: int) -> None:
        """Refuses too few images for least squares."""
        images = min(self.images, n_train)
        parameters = dict(network.named_parameters())
        for name, group in amount.groups.items():
            readers = can_be_sampled(network, group)
            # A map of one pixel has no more outputs than filters; of larger ones there are.
            outputs = sum(parameters[str(r.parameter)].shape[1 - r.dim] for r in readers.values())
            if readers and amount.removed[name] and images * outputs < group.channels:
                raise ValueError(
                    f"Expected at least as many samples as {name!r} has channels, "
                    f"{group.channels}; got {images} images x {outputs} outputs of what reads "
                    "them. Ask for more images."
                )


def _summed(readers: Sequence[SampledReader]) -> Gram:
    """The Gram matrices of a group's readers together, each as a share of its own squares."""
    grams = [reader.gram for reader in readers]
    if len(grams) > 1:
        grams = [gram / (gram.trace() or 1.0) for gram in grams]
    total: Gram = np.sum(grams, axis=0)
    return total


def greedy_choice(gram: Gram, n: int) -> list[int]:
    """The channels that go, in the order in which they were chosen; ties go to the lowest index.

    Each step adds the channel that leaves the sum over samples of the squared sum of the chosen
    channels' contributions smallest; with the Gram matrix a step is O(channels).

    Args:
        gram: of the contributions.
        n: how many channels go.

    Source: Luo et al. 2017, algorithm 1 and equation 6.
    """
    own = gram.diagonal().copy()  # infinite for those that were chosen
    crossed = np.zeros_like(own)  # twice the products with those that were chosen, summed
    sizes = np.abs(own)  # what was summed up so far, whatever the sign
    chosen: list[int] = []
    for _ in range(n):
        added = own + crossed
        slack = ROUNDING * sizes
        lowest = added.argmin()
        tied = added - slack <= added[lowest] + slack[lowest]
        pick = int(tied.argmax())  # the first of them
        chosen.append(pick)
        row = 2 * gram[pick]
        crossed += row
        sizes += np.abs(row)
        own[pick] = np.inf
    return chosen


def least_squares_scales(gram: Gram, removed: list[int]) -> NDArray[np.float64]:
    """A factor for each channel, (channels,): those that stay make up for the removed ones.

    Minimises the summed squared difference between the output of all channels and the scaled output
    of those that stay. Where the samples leave a choice, the factors are nearest to 1; those of
    removed channels are 1.

    Source: Luo et al. 2017, equation 7.
    """
    kept = np.setdiff1d(np.arange(len(gram)), removed)
    scales = np.ones(len(gram))
    missing = gram[kept][:, removed].sum(axis=1)
    inverse = np.linalg.pinv(gram[kept][:, kept], rcond=NOISE, hermitian=True)
    scales[kept] += inverse @ missing
    return scales


def _epochs_after_layers(
    rounds: int, layers: int, epochs: int, epochs_per_layer: int | None
) -> list[int]:
    """The epochs that follow each layer of each round; a round's last layer gets what is left.

    Raises:
        ValueError: if a round would get none, or its layers ask for more than it has.
    """
    found = []
    for n_epochs in epochs_per_round(rounds, epochs):
        if epochs_per_layer is None:
            ends = [n_epochs // 2 * k // (layers - 1) for k in range(layers)] if layers > 1 else [0]
            between = np.diff(ends).tolist()
        else:
            between = [epochs_per_layer] * (layers - 1)
        left = n_epochs - sum(between)
        if left < (epochs_per_layer or 0):
            raise ValueError(
                f"epochs_per_layer {epochs_per_layer}, for {layers} layers, is more than a round "
                f"has: {n_epochs} of fine_tuning.epochs {epochs}. Ask for at most "
                f"{n_epochs // layers}, for fewer rounds or for more epochs."
            )
        found += [*between, left]
    return found
