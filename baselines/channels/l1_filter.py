"""L1 filter pruning: Li, Kadav, Durdanovic, Samet, Graf 2016, "Pruning filters for efficient
ConvNets", arXiv 1608.08710.

Ranks the channels of every group by the sum of the absolute weights that write them and removes the
lowest, with their feature maps and the next layers' inputs, after the training; then fine-tunes.
Where several layers write the channels, their sums are normalised (Fang et al. 2023, "DepGraph").

Where we differ: the paper chooses by hand, from its sensitivity, what each stage loses; here one
keep ratio holds for every layer, so that one number moves along the frontier. In `rounds` (seed
report 002, which says no more of them) what is kept shrinks by the same factor each time, and
filters are ranked anew. The report zeroes filters and prunes linear layers too; here filters go,
and linear layers only lose the inputs that went.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from baselines.channels.channel_groups import ChannelGroups
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.group_norms import l1_norms
from baselines.channels.keep_ratio import KeepAmount
from baselines.channels.rounds import Rounds, epochs_per_round
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run


class L1Filter(KeepAmount):
    """One of both amounts, a keep ratio of 0.5 where neither is given; reached after all rounds."""

    rounds: Rounds = 1
    rank_by: Literal["writers", "writers_and_readers"] = Field(
        default="writers", description="Whose weights rank a channel."
    )

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned in each round (see `PruningMethod`).

        Resumes after the last complete round, if the run's folder holds a checkpoint.
        """
        epochs = epochs_per_round(self.rounds, run.fine_tuning.epochs)
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        amount = self.amount(network, example)
        channels = sum(group.channels for group in amount.groups.values())
        checkpoint = Checkpoint(self, model, data, run)
        completed = max(0, checkpoint.load(network))
        groups = amount.groups
        for removed in checkpoint.notes:
            groups = groups.after(removed)
        for number, n_epochs in enumerate(epochs[completed:], completed + 1):
            to_keep = {
                name: amount.kept_after(name, number / self.rounds) for name in amount.groups
            }
            removed = self._lowest(network, groups, to_keep)
            network = remove_channels(network, example, groups, removed)
            groups = groups.after(removed)
            checkpoint.notes.append(removed)
            run.fine_tune(network, data, n_epochs)
            run.report({"round": number, "channels_kept": sum(to_keep.values()) / channels})
            checkpoint.save(number, network)
        return network

    def _lowest(
        self, network: nn.Module, groups: ChannelGroups, to_keep: Mapping[str, int]
    ) -> dict[str, list[int]]:
        """Group -> the channels that go, so that those with the largest sums of weights stay."""
        removed = {}
        for name, group in groups.items():
            # Ranked on the CPU, where ties fall the same way whichever device is trained on.
            norms = l1_norms(network, group, readers=self.rank_by == "writers_and_readers")
            kept = set(torch.topk(norms, to_keep[name]).indices.tolist())
            removed[name] = [i for i in range(len(norms)) if i not in kept]
        return removed
