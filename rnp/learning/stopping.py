"""Q-learning of where to stop: after each step an image goes on at a price, or ends with its loss.

An image that goes on comes to one next state, whatever it does later. So all its states are known
once it was looked at, and what either action brings in them, if the present greedy policy follows.
Nothing is explored. As with the learner `cost_to_go`, what tells the actions apart is learnt:

    Q(s_t, stop) = -alpha L_t      Q(s_t, go on) = p_t + V(s_(t+1))      V(s_T) = -alpha L_T
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.budget import Budget
from rnp.learning.qlearning import Learned, Optimisation, Step, optimised
from rnp.learning.rollout import q_values
from rnp.learning.targets import advantages, q_loss
from testbed.training import Report, ignore


@dataclass(frozen=True)
class Looks:
    """What n images show, and what they lose, wherever they stop."""

    features: Sequence[Tensor]
    """Of each of T steps, (n, C): what is decided from."""
    losses: Tensor
    """(n, T + 1): each image's own, if it stops at a step; the last one's, if it never does."""


class Stopping(Optimisation, Protocol):
    """Options, as `QLearning` has them."""

    @property
    def alpha(self) -> float | None: ...


def learn_to_stop(
    decision: DecisionNetwork,
    looks: Looks,
    options: Stopping,
    generator: torch.Generator,
    report: Report = ignore,
    price: Tensor | None = None,
    budget: Budget | None = None,
) -> Learned:
    """Learns Q of action 0, to stop, and 1, to go on; arguments and errors as for `learn`.

    alpha is set so that the loss weighs 1 in the mean over images and steps.
    """
    for step, features in enumerate(looks.features):
        decision.standardise(step, features)
    alpha = _alpha(looks.losses) if options.alpha is None else options.alpha
    report({"alpha": alpha})

    def learnt(_: int, images: Tensor, penalties: Tensor) -> Step:
        images = images.to(looks.losses.device)
        state, each = None, []
        for step, features in enumerate(looks.features):
            q, state = decision(step, features[images], state)
            each.append(q)
        values = torch.stack(each, dim=1)
        best = values.detach().argmax(dim=2)
        brings = returns(best, looks.losses[images], penalties, alpha)
        loss = q_loss(advantages(values), advantages(brings), "squared")
        from_start = brings[:, 0].gather(1, best[:, :1])
        return Step(loss, best, from_start.mean())

    n, device = len(looks.losses), looks.losses.device
    p = optimised(decision, learnt, n, device, alpha, options, generator, report, price, budget)
    return Learned(alpha, p, 0.0)


def actions_of(decision: DecisionNetwork, features: Sequence[Tensor]) -> Tensor:
    """The best action in each state, (n, T), in those behind a stop, too."""
    return q_values(decision, features).argmax(dim=2)


def returns(actions: Tensor, losses: Tensor, penalties: Tensor, alpha: float) -> Tensor:
    """What each action brings in each state, if `actions` follow: (n, T, 2).

    Args:
        actions: (n, T).
        losses: (n, T + 1), as of `Looks`.
        penalties: (T,), what going on brings at each step, <= 0.
    """
    stopped = -alpha * losses
    following, steps = stopped[:, -1], []
    for step in reversed(range(actions.shape[1])):
        going = penalties[step] + following
        steps.append(torch.stack([stopped[:, step], going], dim=1))
        following = torch.where(actions[:, step] == 1, going, stopped[:, step])
    return torch.stack(steps[::-1], dim=1)


def _alpha(losses: Tensor) -> float:
    mean = losses.mean().item()
    if not 0 < mean < math.inf:
        raise ValueError(
            f"alpha makes the mean loss 1, but that loss is {mean:g}. Give alpha itself."
        )
    return 1 / mean
