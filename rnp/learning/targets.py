"""Rewards, targets of Q and its loss: Lin et al. 2017, section 3.3."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rnp.execution.decision import DecisionNetwork, Decisions, decisions
from rnp.learning.environment import Episodes


def rewards(actions: Tensor, losses: Tensor, penalties: Tensor, alpha: float) -> Tensor:
    """The reward of each step (Lin et al. 2017, equation 2), (n, T).

    Args:
        actions: (n, T), from 0.
        losses: (n,), each image's own cross-entropy; it counts in the last step.
        penalties: (T,), what a group beyond the first brings at each step, <= 0.
    """
    reward = actions * penalties
    reward[:, -1] -= alpha * losses
    return reward


def td_targets(reward: Tensor, values: Tensor, gamma: float) -> Tensor:
    """`r_t + gamma * max_a Q(s_{t+1}, a)`, (n, T); the last step's reward alone, as none follows.

    Args:
        reward: (n, T).
        values: Q of all states and actions, (n, T, n_actions); no gradient flows into them.

    Source: Lin et al. 2017, equation 3.
    """
    targets = reward.clone()
    targets[:, :-1] += gamma * values.detach()[:, 1:].amax(dim=2)
    return targets


@torch.no_grad()
def exact_returns(
    decision: DecisionNetwork,
    beginning: Episodes,
    played: Decisions,
    penalties: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """What each action in each state would bring, if the present greedy policy followed it.

    Nothing is estimated: the episodes fork at every state and are played to their end.

    Args:
        beginning: the episodes that were played, before their first step.

    Returns:
        (n, T, n_actions).
    """

    def following(episodes: Episodes, state: Tensor, step: int) -> Tensor:
        """The discounted rewards from `step` on, and the loss, which the last action brings."""
        if step == len(penalties):
            episodes.observe()  # which takes them to their end
            return -alpha * episodes.losses
        taken = decisions(decision, episodes, step=step, state=state).actions
        returns = -alpha * episodes.losses
        for reward in reversed((taken * penalties[step:]).unbind(dim=1)):
            returns = gamma * (reward + returns)
        return returns

    steps = []
    for step, (actions, state) in enumerate(
        zip(played.actions.unbind(dim=1), played.states, strict=True)
    ):
        beginning.observe()
        returns = []
        for action in range(played.values.shape[2]):
            forked = beginning.fork()
            forked.act(torch.full_like(actions, action))
            returns.append(action * penalties[step] + following(forked, state, step + 1))
        steps.append(torch.stack(returns, dim=1))
        beginning.act(actions)
    return torch.stack(steps, dim=1)


def advantages(values: Tensor) -> Tensor:
    """Values of actions, less the mean over the actions, which is last.

    Only these decide. What all actions of an image bring alike, as it is easy or hard, differs far
    more from image to image than what a group saves does from group to group.

    Source: Wang et al. 2016, "Dueling network architectures for deep reinforcement learning", arXiv
    1511.06581, equation 9.
    """
    return values - values.mean(dim=-1, keepdim=True)


def q_loss(predicted: Tensor, targets: Tensor, kind: Literal["squared", "huber"]) -> Tensor:
    """The mean over images, steps (and actions, if all are learnt) of the error of each."""
    loss = F.mse_loss if kind == "squared" else F.huber_loss
    return loss(predicted, targets)
