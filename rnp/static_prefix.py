"""Static prefix: the control that shows what RNP gains by looking at the image.

After slimmable networks: Yu, Yang, Xu, Yang, Huang 2019, "Slimmable neural networks", arXiv
1812.08928; the greedy choice after Yu and Huang 2019, "AutoSlim", arXiv 1903.11728.

Takes the backbone that RNP itself starts from (`adapted`), keeps the same prefix of each prunable
conv's channels for all images, the best one that the budget allows, and fine-tunes the smaller
network for all epochs that are left. Prefixes are chosen with the batch-norm statistics of each,
and the smaller network starts with those of its own.

Where we differ: the widths are those that RNP chooses among, k a layer. They are chosen by the mean
cross-entropy of validation images, since a few hundred images leave many choices equally accurate,
and since it is what RNP's reward is made of. These images are a part (`choice_share`), and every
accuracy that is reported is of the others (`held_back`). Where there are at most 256 choices all
are compared; else groups are taken away one at a time, and what a layer's group is worth is found
out anew only when that layer stands first. AutoSlim does so for every layer each time, which a deep
network makes long.

Its output is a smaller network: it runs fewer multiplications, the same for every image.
"""

import copy
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import Field
from torch import Tensor, nn

from rnp.adaptation import Adaptation, adapted
from rnp.batch_norm_statistics import estimate_statistics
from rnp.execution.masked_run import MaskedRun
from rnp.prefix_cost import Actions, PrefixCost
from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import ChannelFlow, PrunedConv, channel_flow
from rnp.structure.channel_order import with_channels
from testbed.data import Splits, normalise
from testbed.held_back import divided
from testbed.method import Run
from testbed.network_file import resized
from testbed.prediction import autocast, evaluating

MOST_COMPARED = 256  # choices of prefixes; with more, groups are taken away one at a time
IMAGES_FOR_GREEDY = 1000  # validation images at most that the greedy choice looks at
BATCH_SIZE = 256


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
        choosing = replace(data, validation=images)
        actions = _best_prefixes(network, choosing, run, cost, budget)
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


def _best_prefixes(
    network: RuntimeNetwork, data: Splits, run: Run, cost: PrefixCost, budget: float
) -> Actions:
    """The actions that the budget allows, chosen on validation images."""
    k, n_convs = network.flow.groups, len(network.flow.convs)
    if k**n_convs <= MOST_COMPARED:
        losses = _losses(network, data, run, [range(k)] * n_convs, len(data.validation))
        return best_of_all(losses, cost, budget)
    n_images = min(IMAGES_FOR_GREEDY, len(data.validation))

    def loss(actions: Actions) -> float:
        return _losses(network, data, run, [[action] for action in actions], n_images).item()

    return prefixes_shrunk(loss, cost, budget)


@torch.no_grad()
def _losses(
    network: RuntimeNetwork,
    data: Splits,
    run: Run,
    choices: Sequence[Sequence[int]],
    n_images: int,
) -> Tensor:
    """Mean cross-entropy of the first validation images, for every combination of the choices.

    Args:
        choices: the actions to try, for each prunable conv.

    Returns:
        One dimension for each prunable conv, as long as its choices.
    """
    total = torch.zeros([len(actions) for actions in choices], dtype=torch.float64)
    with evaluating(network), autocast(run.fine_tuning.precision, run.device):
        for first in range(0, n_images, BATCH_SIZE):
            places = slice(first, min(first + BATCH_SIZE, n_images))
            images = data.validation[places].to(run.device)
            inputs = normalise(images.pixels, data.mean, data.std)
            whole = MaskedRun(network, network.flow, inputs)
            losses = [
                F.cross_entropy(end.logits.float(), images.labels, reduction="sum").double()
                for end in whole.ends(choices)
            ]
            total += torch.stack(losses).cpu().view(total.shape)
    return total / n_images


def best_of_all(losses: Tensor, cost: Callable[[Actions], int], budget: float) -> Actions:
    """The actions of least loss that cost no more than `budget`; of equal ones the cheapest.

    Args:
        losses: (k, ..., k), one dimension for each prunable conv.
    """
    combinations = product(*map(range, losses.shape))
    affordable = [actions for actions in combinations if cost(actions) <= budget]
    return min(affordable, key=lambda actions: (losses[actions].item(), cost(actions)))


def prefixes_shrunk(loss: Callable[[Actions], float], cost: PrefixCost, budget: float) -> Actions:
    """Groups taken away one at a time (see `shrunk`)."""
    convs = cost.flow.convs
    whole = tuple(len(conv.prefixes) - 1 for conv in convs)
    return shrunk(loss, cost, budget, whole, lambda step, taken: _a_group_less(convs[step], taken))


def shrunk(
    loss: Callable[[Actions], float],
    cost: Callable[[Actions], int],
    budget: float,
    actions: Actions,
    less: Callable[[int, int], int | None],
) -> Actions:
    """From all computed on, takes away what raises the loss per multiplication saved least.

    Again and again, until the cost is at most `budget`.

    Args:
        actions: that compute all.
        less: the next action down from one, of a step and that action; None where there is none.
    """
    now, taken = loss(actions), 0
    # What is known of each step's next action: (rise of the loss per multiplication, step, times
    # that something was gone when it was measured, loss with it).
    known = [(-math.inf, step, -1, math.nan) for step in range(len(actions))]
    while cost(actions) > budget:
        _, step, measured_at, after = heapq.heappop(known)
        fewer = less(step, actions[step])
        if fewer is None:
            continue
        smaller = (*actions[:step], fewer, *actions[step + 1 :])
        if measured_at == taken:
            actions, now, taken = smaller, after, taken + 1
            heapq.heappush(known, (-math.inf, step, -1, math.nan))
        else:
            after = loss(smaller)
            rise = (after - now) / (cost(actions) - cost(smaller))
            heapq.heappush(known, (rise, step, taken, after))
    return actions


def _a_group_less(conv: PrunedConv, action: int) -> int | None:
    """The largest action with a smaller prefix, as groups of a narrow conv may be empty."""
    smaller = [a for a in range(action) if conv.prefixes[a] < conv.prefixes[action]]
    return max(smaller, default=None)
