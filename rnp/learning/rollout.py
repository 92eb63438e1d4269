"""Rollouts: episodes played with a decision network, epsilon-greedily, a batch at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork, decisions, greedy
from rnp.learning.environment import Episodes


@dataclass(frozen=True)
class Rollout:
    """What happened in a batch of n episodes of T steps."""

    features: Sequence[Tensor]
    """Of each step, (n, C)."""
    states: Sequence[Tensor]
    """The recurrent state after each step, (n, hidden)."""
    values: Tensor
    """Q of all actions, (n, T, n_actions); gradients flow through all of them."""
    actions: Tensor
    """Those taken, (n, T) int64."""
    losses: Tensor
    """Each image's own, (n,)."""


def roll_out(
    decision: DecisionNetwork, episodes: Episodes, epsilon: float, generator: torch.Generator
) -> Rollout:
    """Plays the episodes to their end, epsilon-greedily."""
    steps = decisions(decision, episodes, lambda values: epsilon_greedy(values, epsilon, generator))
    features, values, states, actions = zip(*steps, strict=True)
    stacked = torch.stack(values, dim=1), torch.stack(actions, dim=1)
    return Rollout(features, states, *stacked, episodes.losses)


def epsilon_greedy(values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """The best action of each image, but with probability epsilon one of all at random.

    Each image draws for itself.

    Args:
        values: Q, (n, n_actions).

    Returns:
        (n,) int64, on the values' device.
    """
    n, n_actions = values.shape
    explores = torch.rand(n, generator=generator) < epsilon
    drawn = torch.randint(n_actions, (n,), generator=generator)
    device = values.device
    return torch.where(explores.to(device), drawn.to(device), greedy(values))


def q_values(decision: DecisionNetwork, features: Sequence[Tensor]) -> Tensor:
    """Q of all actions in the states with these features, (n, T, n_actions), as constants."""
    values, state = [], None
    with torch.no_grad():
        for step, seen in enumerate(features):
            q, state = decision(step, seen, state)
            values.append(q)
    return torch.stack(values, dim=1)
