"""Episodes played with a decision network, epsilon-greedily, a whole batch at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rnp.decision import DecisionNetwork
from rnp.environment import Episodes


@dataclass(frozen=True)
class Played:
    """What happened in a batch of n episodes of T steps."""

    features: list[Tensor]
    """Of each step, (n, C)."""
    states: list[Tensor]
    """The recurrent state after each step, (n, hidden)."""
    values: Tensor
    """Q of all actions, (n, T, n_actions); gradients flow through all of them."""
    actions: Tensor
    """Those taken, (n, T) int64."""
    losses: Tensor
    """Each image's own, (n,)."""


def play(
    decision: DecisionNetwork, episodes: Episodes, epsilon: float, generator: torch.Generator
) -> Played:
    """Plays the episodes to their end, epsilon-greedily."""
    features: list[Tensor] = []
    states: list[Tensor] = []
    values: list[Tensor] = []
    actions: list[Tensor] = []
    state = None
    while (seen := episodes.observe()) is not None:
        q, state = decision(len(actions), seen, state)
        action = epsilon_greedy(q.detach(), epsilon, generator)
        episodes.act(action)
        features.append(seen)
        states.append(state)
        values.append(q)
        actions.append(action)
    stacked = torch.stack(values, dim=1), torch.stack(actions, dim=1)
    return Played(features, states, *stacked, episodes.losses)


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
    return torch.where(explores.to(device), drawn.to(device), values.argmax(dim=1))


def q_values(decision: DecisionNetwork, features: list[Tensor]) -> Tensor:
    """Q of all actions in the states with these features, (n, T, n_actions), as constants."""
    values, state = [], None
    with torch.no_grad():
        for step, seen in enumerate(features):
            q, state = decision(step, seen, state)
            values.append(q)
    return torch.stack(values, dim=1)
