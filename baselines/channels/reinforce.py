"""REINFORCE for the choice of filters: an agent that learns which to keep from what masks earn.

Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning", Machine Learning 8.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from baselines.channels.group_norms import standardised

HIDDEN = 64  # units that read a filter
LEARNING_RATE = 0.02
SHARPNESS = 4.0  # of the first weights: filters that are alike are told apart all the same
EXPLORED = 0.25  # filters of a mask, in the mean, that are drawn against a decided agent
LOOKED_AT = 10  # times, in the course of the learning, that masks are noted
MOST_EXPLORATION = 0.1  # the probability of that for one filter, at most


class Agent(nn.Module):
    """Gives each channel of a group a probability of being kept, from its filter's weights alone.

    One small network reads every filter, whatever their number and size.
    """

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        """`weight`: that makes the channels, (filters, ...). The generator is of the CPU."""
        super().__init__()
        self.filters = standardised(weight.detach().float().flatten(1))
        n = self.filters.shape[1]
        self.read = nn.Linear(n, HIDDEN)
        self.decide = nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            scale = SHARPNESS / math.sqrt(n)
            self.read.weight.copy_(scale * torch.randn(HIDDEN, n, generator=generator))
            self.read.bias.zero_()  # else all filters would have much in common
            self.decide.weight.zero_()  # so that all filters start alike
            self.decide.bias.zero_()  # at a probability of a half
        self.to(weight.device)

    def forward(self) -> Tensor:
        """Keep probabilities, (filters,), never quite 0 or 1.

        Beyond that the scores keep their gradient, so that an agent can still change its mind.
        """
        scores = self.scores()
        explored = min(MOST_EXPLORATION, EXPLORED / len(scores))
        bound = math.log((1 - explored) / explored)
        return torch.sigmoid(scores + (scores.clamp(-bound, bound) - scores).detach())

    def scores(self) -> Tensor:
        """What the probabilities come from, (filters,): it tells decided filters apart, too."""
        scores: Tensor = self.decide(torch.tanh(self.read(self.filters))).squeeze(1)
        return scores


class Remembered:
    """Accuracies of masks, each found out once: a decided agent samples the same ones again."""

    def __init__(
        self, accuracies: Callable[[Tensor], Sequence[float]], images_per_mask: int
    ) -> None:
        self._accuracies = accuracies
        self._images_per_mask = images_per_mask
        self._known: dict[bytes, float] = {}

    @property
    def n_images(self) -> int:
        """How many images masks have taken through the network."""
        return len(self._known) * self._images_per_mask

    def __call__(self, masks: Tensor) -> Tensor:
        """(masks,) float64, of masks (masks, channels) bool on the CPU."""
        keys = [mask.numpy().tobytes() for mask in masks]
        new = {key: mask for key, mask in zip(keys, masks, strict=True) if key not in self._known}
        if new:
            found = self._accuracies(torch.stack(list(new.values())))
            self._known |= dict(zip(new, found, strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)


def learn(
    weight: Tensor, reward: Callable[[Tensor], Tensor], samples: int, steps: int, seed: int
) -> Tensor:
    """Teaches an agent which filters to keep; the caller's random state stays as it was.

    Args:
        weight: that makes the channels, (filters, ...).
        reward: of masks (masks, filters) bool on the CPU, one filter kept at least: (masks,).
        samples: masks of each step.

    Returns:
        Of some moments in the course of the learning the most probable mask and the best of those
        sampled; then masks of the filters with the highest scores, from as many as the last most
        probable mask keeps up to all, in as many steps: (masks, filters).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):  # torch draws first weights, which the agent then replaces
        agent = Agent(weight, generator)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    noted = []
    for step in range(1, steps + 1):
        keep = agent()
        actions = torch.rand(samples, len(weight), generator=generator) < keep.detach().cpu()
        masks = at_least_one(actions, weight)
        rewards = reward(masks)
        gains = advantages(rewards)
        loss = reinforce_loss(keep, actions.to(keep.device), gains.to(keep))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step * LOOKED_AT // steps > (step - 1) * LOOKED_AT // steps:
            with torch.no_grad():
                probable = at_least_one(agent().cpu()[None] > 0.5, weight)
            noted += [probable, masks[rewards.argmax()][None]]
    with torch.no_grad():
        return torch.cat([*noted, highest(agent.scores().cpu(), int(probable.sum()))])


def highest(scores: Tensor, fewest: int) -> Tensor:
    """Masks (masks, filters) of the filters with the highest scores, (filters,).

    Their sizes go from `fewest` to all, in `LOOKED_AT` steps or in those of one filter.
    """
    ranks = scores.argsort(descending=True, stable=True).argsort()
    sizes = torch.linspace(fewest, len(scores), LOOKED_AT + 1).round().unique()
    return ranks < sizes[:, None]


def advantages(rewards: Tensor) -> Tensor:
    """Of each sample, (samples,): the share of the others that it beats, less those that beat it.

    That is its rank with the mean rank as the baseline. On average the gradient is that of the
    probability of beating a mask of the policy as it was, less that of being beaten by it.
    """
    n = len(rewards)
    return (rewards[:, None] - rewards).sign().sum(dim=1) / (n - 1)


def reinforce_loss(keep: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """Its gradient is minus the estimated gradient of the expected reward.

    Args:
        keep: (filters,), probabilities.
        actions: (samples, filters) bool, drawn with these.
        advantages: (samples,).

    Source: Williams 1992; Yang and Xu, equation 4, with the logarithm that it lacks.
    """
    log_probabilities = torch.where(actions, keep.log(), (1 - keep).log()).sum(dim=1)
    return -(advantages * log_probabilities).mean()


def at_least_one(actions: Tensor, weight: Tensor) -> Tensor:
    """Actions as masks: where none is kept, the filter with the largest weights is.

    It does not depend on the agent, so that what an action leads to is the same for every policy.

    Args:
        actions: (masks, filters) bool, on the CPU.
    """
    largest = weight.detach().flatten(1).abs().sum(dim=1).argmax().cpu()
    masks = actions.clone()
    masks[:, largest] |= ~actions.any(dim=1)
    return masks
