"""Static vanilla: the same network, thin from the start (the RNP report; cf. Liu et al. 2019,
"Rethinking the value of network pruning").

Every channel group has fewer channels before any training; the thin network is drawn anew and
trained from scratch. It tells what the trained weights that other methods inherit are worth.

Where we differ from the report: it gets the epochs that the others get in total, the dense
network's and the fine-tuning's, in one schedule, or the comparison would not be fair. New weights
come from each module's `reset_parameters`, as in our backbones, not from the code that built it
(`draw_anew` says what becomes of modules without one).

Its output is a smaller network: it runs fewer multiplications.
"""

import copy

import torch
from torch import nn

from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.keep_ratio import KeepAmount
from testbed.data import Splits
from testbed.method import Run
from testbed.new_weights import draw_anew


class Vanilla(KeepAmount):
    """One of both options; a keep ratio of 0.5 where neither is given."""

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A thin network of `model`'s kind, trained from scratch (see `PruningMethod`)."""
        # On the CPU, so that the seed draws the same weights whichever device is trained on.
        cpu = torch.device("cpu")
        network = copy.deepcopy(model).to(cpu)
        example = example_images(data, cpu)
        amount = self.amount(network, example)
        # Which channels go does not matter: those that stay are drawn anew.
        removed = {name: range(n) for name, n in amount.removed.items()}
        network = remove_channels(network, example, amount.groups, removed)
        draw_anew(network, run.seed)
        network.to(run.device)
        run.train_from_scratch(network, data)
        return network
