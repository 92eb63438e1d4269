"""Random channels: the control that every method which chooses its channels has to beat.

Removes channels drawn at random from every group of the trained network, all at once, then
fine-tunes. Source: Mittal, Bhardwaj, Khapra, Ravindran 2018, "Recovering from random pruning".

Where we differ: every group is thinned by one keep ratio, as by the other channel methods.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
import hashlib

import torch
from torch import nn

from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.keep_ratio import KeepAmount
from testbed.data import Splits
from testbed.method import Run


class RandomChannels(KeepAmount):
    """One of both options; a keep ratio of 0.5 where neither is given."""

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned; the seed draws what goes (see `PruningMethod`)."""
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        amount = self.amount(network, example)
        generator = torch.Generator().manual_seed(self._seed(run.seed))
        removed = {
            name: torch.randperm(group.channels, generator=generator)[
                : amount.removed[name]
            ].tolist()
            for name, group in amount.groups.items()
        }
        network = remove_channels(network, example, amount.groups, removed)
        run.fine_tune(network, data)
        return network

    def _seed(self, seed: int) -> int:
        """Of the options too: with the trial's seed alone, each ratio would keep part of what the
        next higher one keeps, and all tries of a search be one lucky or unlucky draw."""
        amounts = {"keep_ratio", "keep_multiplications"}
        others = self.model_dump_json(exclude_defaults=True, exclude=amounts).strip("{}")
        options = f"{self.model_dump_json(include=amounts)}{others}"
        digest = hashlib.sha256(f"{seed} {options}".encode()).digest()
        return int.from_bytes(digest[:7])
