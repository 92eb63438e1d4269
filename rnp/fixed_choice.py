"""Choice of the same actions for all images: the best that a budget allows.

Where there are at most 256 choices all are compared; else actions are lowered one at a time, and by
how much a step's lower action raises the loss is found out anew only when that step stands first
(after the greedy choice of Yu and Huang 2019, "AutoSlim", arXiv 1903.11728, which does so for every
step each time). They are compared by the mean cross-entropy of images, since a few hundred images
leave many choices equally accurate, and since it is what RNP's reward is made of.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rnp.execution.masked_run import MaskedRun
from rnp.execution.routed_run import RoutedRun
from rnp.prefix_cost import Actions, Deciding
from testbed.data import Images, Splits, normalise
from testbed.method import Run
from testbed.prediction import autocast, evaluating

MOST_COMPARED = 256  # choices; with more, actions are lowered one at a time
IMAGES_FOR_GREEDY = 1000  # at most that the greedy choice looks at
BATCH_SIZE = 256

Less = Callable[[int, int], int | None]
"""The next action down from one, of a step and that action; None where there is none."""


def best_fixed_actions(
    network: Deciding,
    images: Images,
    data: Splits,
    run: Run,
    cost: Callable[[Actions], int],
    budget: float,
    less: Less,
) -> Actions:
    """The actions that the budget allows, of least loss on images.

    Args:
        data: how images are normalised.
        cost: of an image, in multiplications, as is the budget.
    """
    k, n_steps = network.decision.n_actions, len(network.decision.inputs)
    if k**n_steps <= MOST_COMPARED:
        losses = _losses(network, images, data, run, [range(k)] * n_steps)
        return best_of_all(losses, cost, budget)
    some = images[:IMAGES_FOR_GREEDY]

    def loss(actions: Actions) -> float:
        return _losses(network, some, data, run, [[action] for action in actions]).item()

    return shrunk(loss, cost, budget, (k - 1,) * n_steps, less)


@torch.no_grad()
def _losses(
    network: Deciding, images: Images, data: Splits, run: Run, choices: Sequence[Sequence[int]]
) -> Tensor:
    """Mean cross-entropy of images for every combination of the choices.

    Args:
        choices: the actions to try, for each step.

    Returns:
        One dimension for each step, as long as its choices.
    """
    total = torch.zeros([len(actions) for actions in choices], dtype=torch.float64)
    with evaluating(network), autocast(run.fine_tuning.precision, run.device):
        for part in images.batches(BATCH_SIZE):
            part = part.to(run.device)
            begun = network.started(normalise(part.pixels, data.mean, data.std))
            losses = [
                F.cross_entropy(end.logits.float(), part.labels, reduction="sum").double()
                for end in _ends(begun, choices)
            ]
            total += torch.stack(losses).cpu().view(total.shape)
    return total / len(images)


def _ends(
    run: MaskedRun | RoutedRun, choices: Sequence[Sequence[int]]
) -> Iterator[MaskedRun | RoutedRun]:
    """Runs that have logits, of every combination of actions; the last one varies fastest.

    What combinations have in common is computed once.
    """
    if run.observe() is None:
        yield run
        return
    for action in choices[len(run.actions)]:
        fork = run.fork()
        fork.act(torch.full((len(run.images),), action, device=run.images.device))
        yield from _ends(fork, choices)


def best_of_all(losses: Tensor, cost: Callable[[Actions], int], budget: float) -> Actions:
    """The actions of least loss that cost no more than `budget`; of equal ones the cheapest.

    Args:
        losses: (k, ..., k), one dimension for each step.
    """
    combinations = product(*map(range, losses.shape))
    affordable = [actions for actions in combinations if cost(actions) <= budget]
    return min(affordable, key=lambda actions: (losses[actions].item(), cost(actions)))


def shrunk(
    loss: Callable[[Actions], float],
    cost: Callable[[Actions], int],
    budget: float,
    actions: Actions,
    less: Less,
) -> Actions:
    """From all computed on, takes away what raises the loss per multiplication saved least.

    Again and again, until the cost is at most `budget`.

    Args:
        actions: that compute all.
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
