"""Rollouts: episodes played with a decision network, epsilon-greedily, a batch at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork, Decisions, decisions, greedy
from rnp.learning.environment import Episodes


def roll_out(
    decision: DecisionNetwork, episodes: Episodes, epsilon: float, generator: torch.Generator
) -> Decisions:
    """Plays the episodes to their end, epsilon-greedily; gradients flow through all values."""
    return decisions(decision, episodes, lambda values: epsilon_greedy(values, epsilon, generator))


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
