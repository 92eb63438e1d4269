"""L1 filter pruning: Li, Kadav, Durdanovic, Samet, Graf 2016, "Pruning filters for efficient
ConvNets", arXiv 1608.08710.

Ranks the filters of every prunable conv by the sum of their absolute weights and removes the
lowest, with their feature maps and the next layer's inputs, after the training; then fine-tunes.

Where we differ: the paper chooses by hand, from its sensitivity, what each stage loses; here one
keep ratio holds for every layer, so that one number moves along the frontier. In `rounds` (seed
report 002, which says no more of them) what is kept shrinks by the same factor each time, and
filters are ranked anew. The report zeroes filters and prunes linear layers too; here filters go,
and linear layers only lose the inputs that went.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.channels.channel_removal import example_images, n_removed, remove_channels
from baselines.channels.keep_ratio import KeepAmount
from baselines.channels.rounds import Rounds, epochs_per_round
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run


class L1Filter(KeepAmount):
    """One of both amounts, a keep ratio of 0.5 where neither is given; reached after all rounds."""

    rounds: Rounds = 1

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned in each round (see `PruningMethod`).

        Resumes after the last complete round, if the run's folder holds a checkpoint.
        """
        epochs = epochs_per_round(self.rounds, run.fine_tuning.epochs)
        network = copy.deepcopy(model).to(run.device)
        example = example_images(data, run.device)
        keep_ratio, counts = self.channels_to_remove(network, example)
        channels = {name: len(network.get_parameter(f"{name}.weight")) for name in counts}
        checkpoint = Checkpoint(self, model, data, run)
        completed = max(0, checkpoint.load(network))
        for number, n_epochs in enumerate(epochs[completed:], completed + 1):
            ratio = keep_ratio ** (number / self.rounds)
            to_keep = {name: n - n_removed(ratio, n) for name, n in channels.items()}
            network = remove_channels(network, example, _lowest(network, to_keep))
            run.fine_tune(network, data, n_epochs)
            kept = sum(to_keep.values()) / sum(channels.values())
            run.report({"round": number, "channels_kept": kept})
            checkpoint.save(number, network)
        return network


def _lowest(network: nn.Module, to_keep: Mapping[str, int]) -> dict[str, list[int]]:
    """Layer -> the filters that go, so that those with the largest sums of weights stay."""
    removed = {}
    for name, n in to_keep.items():
        # Ranked on the CPU, where ties fall the same way whichever device is trained on.
        norms = l1_norms(network.get_parameter(f"{name}.weight").detach().cpu())
        kept = set(torch.topk(norms, n).indices.tolist())
        removed[name] = [i for i in range(len(norms)) if i not in kept]
    return removed


def l1_norms(weight: Tensor) -> Tensor:
    """Sum of the absolute weights of each filter, (out_channels,), of a conv's `weight`."""
    return torch.linalg.vector_norm(weight, ord=1, dim=tuple(range(1, weight.dim())))
