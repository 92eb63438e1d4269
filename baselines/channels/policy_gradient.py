"""Policy-gradient pruning: Yang, Xu, "From rule-based to learning-based network pruning"; after
Huang, Zhou, You, Neumann 2018, "Learning to prune filters in convolutional neural networks", WACV,
arXiv 1801.07365.

Layer by layer, from low to high, an agent reads the filters of a layer and gives each a probability
of being kept. It learns by REINFORCE from the accuracy of validation images under masks that it
samples, and from how few filters these keep; then the channels it does without are removed and the
network is fine-tuned. Layers that write the same channels, as those of a residual network do, have
one agent: it reads the weights of all of them that make a channel.

Where we differ: the report prints the accuracy term with the sign of the drop the wrong way round,
and its gradient without the logarithm; both are mended. Rewards are of one part of the validation
images, and every accuracy that is reported is of the others (`held_back`). The report leaves agent,
optimiser, baseline and schedule open: here a small network reads each filter by itself;
probabilities start near 1, where rewards say most, and a little exploration stays. Masks count by
the rank of their reward within the step, less the mean rank: a mask that loses a filter which
matters is so far below the others that it would drown the gain of losing one which does not (of 20
channels that put out zero, 100 steps found 3 to 10 by reward, 11 to 13 by rank). What is kept is
the best rewarded of the most probable mask, those sampled last, and all channels. Fine-tuning
epochs are spread evenly over the layers; if they are fewer, some layers go without.

Its `val_accuracy_before_finetuning` is that with the first layer pruned, as for `thinet`.

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroups, Keep, Scope, channel_groups
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.group_norms import group_filters, standardised
from baselines.channels.reward_evaluation import evaluation_of_masks
from testbed.checkpoint import Checkpoint
from testbed.cost import count_parameters
from testbed.data import Images, Splits
from testbed.held_back import divided
from testbed.method import Run
from testbed.names import unknown
from testbed.prediction import evaluate

HIDDEN = 64  # units that read a filter
LEARNING_RATE = 0.02
SHARPNESS = 4.0  # of the first weights: filters that are alike are told apart all the same
FIRST_KEEP_PROBABILITY = 0.9
EXPLORED = 0.25  # filters of a mask, in the mean, that are drawn against a decided agent
MOST_EXPLORATION = 0.1  # the probability of that for one filter, at most


class PolicyGradient(BaseModel):
    """The drop bound moves along the frontier; the other options say how well agents learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop_bound: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Drop of accuracy that makes a mask worthless, in percentage points.",
    )
    samples: int = Field(default=10, ge=2, description="Masks that each step compares.")
    steps: int = Field(default=200, ge=1, description="Steps that each layer's agent learns for.")
    layers: Literal["all", "one"] = Field(
        default="all", description="Every prunable layer from low to high, or a single one."
    )
    layer: str | None = Field(default=None, description="The layer to prune where layers is one.")
    reward_share: float = Field(
        default=0.5, gt=0, lt=1, description="Of the validation images: those that give rewards."
    )
    scope: Scope = "inside_blocks"
    keep: Keep = ()

    @model_validator(mode="after")
    def _layer_is_named(self) -> "PolicyGradient":
        if (self.layers == "one") != (self.layer is not None):
            raise ValueError(
                "give layer, the name of one, with layers: one, and only then; got layers "
                f"{self.layers!r} and layer {self.layer!r}"
            )
        return self

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that give no rewards (see `HoldsBack`)."""
        return divided(data, self.reward_share, "reward_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self._layers(self._groups(dense, example_images(data, torch.device("cpu"))))
        divided(data, self.reward_share, "reward_share")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned after each layer (see `PruningMethod`).

        Resumes after the last complete layer, if the run's folder holds a checkpoint.

        Raises:
            ValueError: before any work, if no layer can be pruned, the one named is not one of
                them, the validation images cannot be divided, or the dense network is no better
                than chance.
                At the end, if no channel was removed from any layer; with `layers: one` that is a
                result.
        """
        network = copy.deepcopy(model).to(run.device).eval()
        example = example_images(data, run.device)
        groups = self._groups(network, example)
        layers = self._layers(groups)
        images, judged = divided(data, self.reward_share, "reward_share")
        dense_accuracy = _better_than_chance(network, images, data, run)
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        for name, removed in checkpoint.notes:
            groups = groups.after({name: removed})
        for number, name in enumerate(layers):
            if number <= completed:
                continue
            kept, reward, n_masks = self._learnt(
                network, groups, name, images, data, run, number, dense_accuracy
            )
            removed = (~kept).nonzero().flatten().tolist()
            network = remove_channels(network, example, groups, {name: removed})
            groups = groups.after({name: removed})
            checkpoint.notes.append([name, removed])
            due = run.fine_tuning.epochs * (number + 1) // len(layers)
            run.fine_tune(network, judged, due - run.epochs_spent)
            run.report(
                {
                    "layer": number + 1,
                    "layer_reward": reward,
                    "reward_epochs": n_masks * len(images) / len(data.train),
                    f"channels_kept.{name}": len(kept) - len(removed),
                    f"channels_pruned.{name}": len(removed),
                }
            )
            checkpoint.save(number, network)
        if self.layer is None and count_parameters(network) == count_parameters(model):
            raise ValueError(
                f"Nothing was removed: within a drop of {self.drop_bound:g} points no mask was "
                f"better than all channels of {', '.join(layers)}. Raise drop_bound, or steps "
                f"(now {self.steps}) so that the agents find more."
            )
        return network

    def _layers(self, groups: ChannelGroups) -> list[str]:
        """The groups that are pruned, in the order in which they run."""
        if self.layer is None:
            return list(groups)
        if self.layer not in groups:
            raise ValueError(unknown("prunable layer", self.layer, groups))
        return [self.layer]

    def _groups(self, network: nn.Module, example: Tensor) -> ChannelGroups:
        return channel_groups(network, example, scope=self.scope, keep=self.keep)

    def _learnt(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        name: str,
        images: Images,
        data: Splits,
        run: Run,
        number: int,
        dense_accuracy: float,
    ) -> tuple[Tensor, float, int]:
        """Which channels of a group stay, (channels,) bool on the CPU, the reward of that, and how
        many masks the reward images were sent through the network with."""
        evaluation = evaluation_of_masks(
            network,
            groups,
            name,
            images,
            data,
            device=run.device,
            precision=run.fine_tuning.precision,
        )

        def reward(masks: Tensor) -> Tensor:
            accuracies = torch.tensor(evaluation(masks), dtype=torch.float64)
            return rewards(accuracies, dense_accuracy, self.drop_bound, masks)

        filters = group_filters(network, groups[name]).to(run.device)
        remembered = Remembered(reward)
        seed = 1000 * run.seed + number
        kept, best = learn(filters, remembered, self.samples, self.steps, seed)
        return kept, best, len(remembered)


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
            self.decide.bias.fill_(math.log(FIRST_KEEP_PROBABILITY / (1 - FIRST_KEEP_PROBABILITY)))
        self.to(weight.device)

    def forward(self) -> Tensor:
        """Keep probabilities, (filters,), never quite 0 or 1.

        Beyond that the scores keep their gradient, so that an agent can still change its mind.
        """
        scores: Tensor = self.decide(torch.tanh(self.read(self.filters))).squeeze(1)
        explored = min(MOST_EXPLORATION, EXPLORED / len(scores))
        bound = math.log((1 - explored) / explored)
        return torch.sigmoid(scores + (scores.clamp(-bound, bound) - scores).detach())


class Remembered:
    """Rewards of masks, each found out once: a decided agent samples the same ones again."""

    def __init__(self, reward: Callable[[Tensor], Tensor]) -> None:
        self._reward = reward
        self._known: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Masks that were evaluated."""
        return len(self._known)

    def __call__(self, masks: Tensor) -> Tensor:
        """(masks,) float64, of masks (masks, channels) bool on the CPU."""
        keys = [mask.numpy().tobytes() for mask in masks]
        new = {key: mask for key, mask in zip(keys, masks, strict=True) if key not in self._known}
        if new:
            found = self._reward(torch.stack(list(new.values()))).tolist()
            self._known |= dict(zip(new, found, strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)


def learn(
    weight: Tensor, reward: Callable[[Tensor], Tensor], samples: int, steps: int, seed: int
) -> tuple[Tensor, float]:
    """Teaches an agent which filters to keep; the caller's random state stays as it was.

    Args:
        weight: that makes the channels, (filters, ...).
        reward: of masks (masks, filters) bool on the CPU, one filter kept at least: (masks,).
        samples: masks of each step.

    Returns:
        The best mask of the most probable one, those sampled last and all filters, and its reward.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):  # torch draws first weights, which the agent then replaces
        agent = Agent(weight, generator)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        keep = agent()
        actions = torch.rand(samples, len(weight), generator=generator) < keep.detach().cpu()
        masks = at_least_one(actions, weight)
        gains = advantages(reward(masks))
        loss = reinforce_loss(keep, actions.to(keep.device), gains.to(keep))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        probable = agent().cpu() > 0.5
    last = at_least_one(probable[None], weight)
    candidates = torch.cat([last, masks, torch.ones_like(last)])
    values = reward(candidates)
    best = int(values.argmax())
    return candidates[best], values[best].item()


def rewards(accuracies: Tensor, dense_accuracy: float, drop_bound: float, masks: Tensor) -> Tensor:
    """`phi * psi`: what is left of the drop bound, times filters over filters kept.

    `phi = 1 - (a* - a) / b`: 1 where the accuracy a is the dense network's a*, 0 where it has
    dropped by b.

    Args:
        accuracies: (masks,), fractions.
        dense_accuracy: on the same images.
        drop_bound: in percentage points.
        masks: (masks, filters) bool, one filter kept at least.

    Source: Yang and Xu, equations 1 to 3, with the sign of the drop in equation 1 mended.
    """
    phi = 1 - 100 * (dense_accuracy - accuracies) / drop_bound
    psi = masks.shape[1] / masks.sum(dim=1)
    return phi * psi


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


def _better_than_chance(network: nn.Module, images: Images, data: Splits, run: Run) -> float:
    """The accuracy on `images`.

    Raises:
        ValueError: if always giving the commonest class would do as well, but for luck.
    """
    accuracy = evaluate(
        network, images, data, device=run.device, precision=run.fine_tuning.precision
    )
    chance = images.labels.bincount().max().item() / len(images)
    luck = 2 * math.sqrt(chance * (1 - chance) / len(images))
    if accuracy <= chance + luck:
        raise ValueError(
            f"The dense network is no better than chance: of {len(images)} validation images it "
            f"classifies {accuracy:.1%} right, always giving the commonest class {chance:.1%} (two "
            f"standard errors are {luck:.1%}). Rewards are made of accuracy: expected a trained "
            "network. Train it for longer, or take more validation images."
        )
    return accuracy
