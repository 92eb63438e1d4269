"""Markov problems worked by hand, for decision networks to learn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.options import QLearning

CPU = torch.device("cpu")
Given = Callable[[Tensor, Tensor], Tensor]
"""Of images' numbers (n,) and the actions so far (n, steps): features (n, C), or losses (n,)."""


class Problem:
    """A Markov problem written by hand."""

    def __init__(self, features: Sequence[Given], losses: Given, n_images: int = 64) -> None:
        self.features = features
        self.losses = losses
        self.n_images = n_images
        self.device = CPU
        self.backbone_images = 0.0
        self.played: list[ProblemEpisodes] = []

    def start(self, images: Tensor) -> "ProblemEpisodes":
        self.played.append(ProblemEpisodes(self, images))
        return self.played[-1]


class ProblemEpisodes:
    def __init__(self, problem: Problem, images: Tensor) -> None:
        self.problem = problem
        self.images = images
        self.actions = torch.empty(len(images), 0, dtype=torch.int64)

    def observe(self) -> Tensor | None:
        step = self.actions.shape[1]
        if step == len(self.problem.features):
            return None
        return self.problem.features[step](self.images, self.actions)

    def act(self, actions: Tensor) -> None:
        self.actions = torch.cat([self.actions, actions[:, None]], dim=1)

    def fork(self) -> "ProblemEpisodes":
        other = ProblemEpisodes(self.problem, self.images)
        other.actions = self.actions
        return other

    @property
    def losses(self) -> Tensor:
        return self.problem.losses(self.images, self.actions)


def is_hard(images: Tensor) -> Tensor:
    """Every other image."""
    return images % 2 == 1


# Two steps of two actions. The first step shows whether an image is hard, the second only what was
# done in the first. An easy image always has a loss of 0.1; a hard one, by its two actions:
#     0 0: 1.0    0 1: 0.5    1 0: 1.0    1 1: 0.1
HARD_LOSSES = torch.tensor([[1.0, 0.5], [1.0, 0.1]])


def two_steps(n_images: int = 64) -> Problem:
    def losses(images: Tensor, actions: Tensor) -> Tensor:
        return torch.where(is_hard(images), HARD_LOSSES[actions[:, 0], actions[:, 1]], 0.1)

    return Problem(
        [
            lambda images, _: is_hard(images)[:, None].float(),
            lambda _, actions: actions[:, :1].float(),
        ],
        losses,
        n_images,
    )


# With alpha 2, p -0.2 and gamma 0.5, where a step's value is that of its best action:
#     easy, second step: -2 * 0.1 = -0.2, and -0.4 for action 1; its value -0.2
#     hard after 0: -2.0 and -0.2 - 1.0 = -1.2; its value -1.2
#     hard after 1: -2.0 and -0.2 - 0.2 = -0.4; its value -0.4
#     easy, first step: 0.5 * -0.2 = -0.1 and -0.2 - 0.1 = -0.3
#     hard, first step: 0.5 * -1.2 = -0.6 and -0.2 + 0.5 * -0.4 = -0.4
WORKED = {"alpha": 2.0, "p": -0.2, "gamma": 0.5}
Q_SECOND = {
    (False, 0): (-0.2, -0.4),
    (False, 1): (-0.2, -0.4),
    (True, 0): (-2.0, -1.2),
    (True, 1): (-2.0, -0.4),
}
Q_FIRST = {False: (-0.1, -0.3), True: (-0.6, -0.4)}


def quick(**options: Any) -> QLearning:
    usual = {"steps": 400, "batch_size": 32, "q_learning_rate": 5e-3}
    return QLearning(**{**usual, **options})


def decision(n_actions: int = 2, features: Sequence[int] = (1, 1)) -> DecisionNetwork:
    torch.manual_seed(0)
    return DecisionNetwork(features, n_actions, encoding=16, hidden=24)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
