"""Static prefix: the control that shows what RNP gains by looking at the image.

After slimmable networks: Yu, Yang, Xu, Yang, Huang 2019, "Slimmable neural networks", arXiv
1812.08928; the greedy choice after Yu and Huang 2019, "AutoSlim", arXiv 1903.11728.

Takes the backbone that RNP itself starts from (`adapted`), keeps the same prefix of each prunable
conv's channels for all images, the best one that the budget allows, and fine-tunes the smaller
network for all epochs that are left. Prefixes are chosen with the batch-norm statistics of each,
and the smaller network starts with those of its own.

Where we differ: the widths are those that RNP chooses among, k a layer. They are chosen by the loss
on a part of the validation images (`choice_share`; see `fixed_choice`), and every accuracy that is
reported is of the others (`held_back`). AutoSlim measures every layer again after each step, which
a deep network makes long.

Its output is a smaller network: it runs fewer multiplications, the same for every image.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from rnp.adaptation import Adaptation, adapted
from rnp.batch_norm_statistics import estimate_statistics
from rnp.fixed_choice import best_fixed_actions
from rnp.prefix_cost import Actions, PrefixCost
from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import ChannelFlow, PrunedConv, channel_flow
from rnp.structure.channel_order import with_channels
from testbed.data import Splits
from testbed.held_back import divided
from testbed.method import Run
from testbed.network_file import resized


class StaticPrefix(Adaptation):
    """The adaptation's options, and the budget."""

    keep_multiplications: float = Field(default=0.5, gt=0, le=1)
    """Most multiplications, as a share of the dense ones."""
    choice_share: float = Field(default=0.5, gt=0, lt=1)
    """Of the validation images: those that the prefixes are chosen on."""

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        """Those of the adaptation, and what its accuracies are of (see `SharesStage`)."""
        return super().stage_options() | {"choice_share"}

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that choose nothing (see `HoldsBack`)."""
        return divided(data, self.choice_share, "choice_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._reachable(dense, data)
        self.held_back(data)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the adaptation, if the run has a folder.

        Raises:
            ValueError: if no conv can be pruned, the budget is below the smallest prefixes, or the
                validation images cannot be divided.
        """
        cost, budget = self._reachable(model, data)
        images, judged = divided(data, self.choice_share, "choice_share")
        network = adapted(model, judged, run, self)
        actions = best_fixed_actions(
            network, images, data, run, cost, budget, partial(a_group_less, network.flow.convs)
        )
        run.report(
            {
                f"mean_action.{conv.name}": action + 1  # as RNP reports them, counted from 1
                for conv, action in zip(cost.flow.convs, actions, strict=True)
            }
        )
        teacher = self.teacher(copy.deepcopy(network))
        chosen = torch.tensor(actions)
        estimate_statistics(network, judged, run, lambda n: chosen.expand(n, -1))
        pruned = cut(model, fixed_to(actions, network, model), cost.flow, actions).to(run.device)
        run.fine_tune(pruned, judged, own_teacher=teacher)
        return pruned

    def _reachable(self, model: nn.Module, data: Splits) -> tuple[PrefixCost, float]:
        """What prefixes of `model` cost, and the budget; refuses one below the smallest."""
        cost = PrefixCost.of_model(model, channel_flow(copy.deepcopy(model), self.k), data)
        return cost, cost.budget(self.keep_multiplications)


def fixed_to(actions: Actions, network: RuntimeNetwork, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `network` that `model` has too, with the statistics for these prefixes."""
    tensors = network.state_dict()
    for norm, step in network.flow.norms.items():
        for statistic in ("mean", "var"):
            of_prefixes = tensors[f"{norm}.prefix_{statistic}"]
            tensors[f"{norm}.running_{statistic}"] = of_prefixes[actions[step]]
    return {name: tensors[name] for name in model.state_dict()}


def cut(
    model: nn.Module, tensors: Mapping[str, Tensor], flow: ChannelFlow, actions: Actions
) -> nn.Module:
    """A copy of `model` with these weights, each prunable conv of it left with one prefix.

    It computes what the whole network does with all channels beyond the prefixes at zero.

    Args:
        tensors: one for every name in the state dict of `model`.
        flow: of `model`.
    """
    kept = dict(tensors)
    for conv, action in zip(flow.convs, actions, strict=True):
        kept = with_channels(kept, conv, torch.arange(conv.prefixes[action]))
    return resized(model, kept)


def a_group_less(convs: Sequence[PrunedConv], step: int, action: int) -> int | None:
    """The largest action with a smaller prefix, as groups of a narrow conv may be empty."""
    conv = convs[step]
    smaller = [a for a in range(action) if conv.prefixes[a] < conv.prefixes[action]]
    return max(smaller, default=None)
