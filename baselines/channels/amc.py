"""AMC: He, Lin, Liu, Wang, Li, Han 2018, "AMC: AutoML for model compression and acceleration on
mobile devices", ECCV, arXiv 1802.03494, and its published code.

An agent (DDPG) goes through the layers in their order and says for each what share of its input
channels stays. It is rewarded with the accuracy of the network so pruned, without fine-tuning. A
wall holds every step to what leaves a budget for the layers to come, so that no network it makes
costs more. The best one found is fine-tuned. Of a layer those input channels stay whose weights'
absolute values are largest, and the layer is refitted by least squares to give what it gave with
all of them.

Where we differ: a step is a group of channels, which may have several layers that read it; each is
refitted. The wall counts every multiplication that a choice saves, those of the layers before
included, where the code's is linear in the layer's own. Multiples of `round_to` are taken below the
wall; the code rounds up behind it. The budget is what one keep ratio for all groups leaves, or
`keep_multiplications`; that uniform choice is the first episode, so that the search has nothing to
lose against `l1_filter` on the images that reward it. Rewards are of a part of the validation
images, and every accuracy that is reported is of the others. 3x3 convs are refitted too, by their
patches, but no layer with more than `MOST_INPUTS` inputs of one output. As in the code inputs and
outputs of the refit are those of the whole network. The state describes groups: what is left to
come is counted in multiplications from the first step on. The paper's other reward, for searches
without a budget, is left out.

Its cost beside the fine-tuning: images that gave rewards (`reward_epochs`), and those the refit
sampled (`statistics_epochs`).

Its output is a smaller network: it runs fewer multiplications.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroup
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.contributions import Sampler
from baselines.channels.ddpg import Agent
from baselines.channels.group_norms import l1_norms, written_weight
from baselines.channels.keep_ratio import Amount, AmountOptions, multiple
from baselines.channels.multiplications import Multiplications
from baselines.channels.refit import Refit
from testbed.checkpoint import Checkpoint
from testbed.data import Images, Splits
from testbed.held_back import divided
from testbed.method import Run
from testbed.prediction import evaluate

EPISODES_A_REPORT = 20
POSITIONS = 10  # that an image gives the refit of each layer

Counts = Mapping[str, int]
"""Group -> how many channels of it go."""


def _known(reward: float, counts: Counts) -> float:
    return reward


class AMC(AmountOptions):
    """One of both amounts, a keep ratio of 0.5 where neither is given; never exceeded."""

    episodes: int = Field(default=400, ge=1, description="Networks that the agent makes.")
    warm_up: int = Field(default=100, ge=1, description="Episodes of random actions at first.")
    lower_bound: float = Field(
        default=0.2, gt=0, le=1, description="Share of its channels that every group keeps."
    )
    reward_share: float = Field(
        default=0.5, gt=0, lt=1, description="Of the validation images: those that give rewards."
    )
    images: int = Field(
        default=1000, ge=1, description="Training images that layers are refitted on."
    )

    @model_validator(mode="after")
    def _learns(self) -> "AMC":
        if self.warm_up >= self.episodes:
            raise ValueError(
                f"expected fewer episodes of warm_up than episodes, got {self.warm_up} of "
                f"{self.episodes}: the agent would learn nothing"
            )
        return self

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that give no rewards (see `HoldsBack`)."""
        return divided(data, self.reward_share, "reward_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        super().check_network(dense, data)
        divided(data, self.reward_share, "reward_share")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A smaller copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the last episodes that were reported, if the run's folder holds a checkpoint.
        """
        network = copy.deepcopy(model).to(run.device).eval()
        example = example_images(data, run.device)
        amount = self.amount(network, example)
        images, judged = divided(data, self.reward_share, "reward_share")
        checkpoint = Checkpoint(self, model, data, run)
        begun = checkpoint.load(network) >= 0
        sampler = Sampler.of_run(network, data, run, self.images, POSITIONS)
        candidates = Candidates(network, example, amount, sampler, run)
        if not begun:
            run.report({"statistics_epochs": candidates.sampled / len(data.train)})
        space = Space(network, amount, self.keep_multiplications, self.lower_bound, self.round_to)
        search = Search(space, self.warm_up, run.seed)
        for reward in checkpoint.notes:  # known: the search takes the same way again
            search.episode(partial(_known, reward))
        while search.episodes < self.episodes:
            known = len(search.rewards)
            for _ in range(min(EPISODES_A_REPORT, self.episodes - search.episodes)):
                reward = search.episode(lambda counts: candidates.accuracy(counts, images, data))
                checkpoint.notes.append(reward)
            evaluated = len(search.rewards) - known
            run.report(
                {
                    "episode": search.episodes,
                    "best_reward": search.best_reward,
                    "reward_epochs": evaluated * len(images) / len(data.train),
                }
            )
            checkpoint.save(search.episodes, network)
        network = candidates.network(search.best)
        run.fine_tune(network, judged)
        return network


class Candidates:
    """The networks that channels can be removed from, refitted."""

    def __init__(
        self, dense: nn.Module, example: Tensor, amount: Amount, sampler: Sampler, run: Run
    ) -> None:
        """`dense` must stay as it is."""
        self._dense, self._example, self._groups, self._run = dense, example, amount.groups, run
        self._order = {  # the least of them first
            name: _read_norms(dense, group).argsort(stable=True).tolist()
            for name, group in amount.groups.items()
        }
        generator = torch.Generator().manual_seed(run.seed)
        images = sampler.drawn(generator)
        self._refit = Refit(dense, amount.groups, sampler, images, generator)
        self.sampled = len(images)
        """Images that the refit was made with."""

    def network(self, counts: Counts) -> nn.Module:
        """The dense network with so many channels of each group gone."""
        removed = {name: sorted(self._order[name][:count]) for name, count in counts.items()}
        network = copy.deepcopy(self._dense)
        self._refit(network, removed)
        return remove_channels(network, self._example, self._groups, removed)

    def accuracy(self, counts: Counts, images: Images, data: Splits) -> float:
        """Of that network on some images."""
        precision = self._run.fine_tuning.precision
        network = self.network(counts)
        return evaluate(network, images, data, device=self._run.device, precision=precision)


def _read_norms(network: nn.Module, group: ChannelGroup) -> Tensor:
    """Sums of the absolute weights that read each channel; that write it, where none is known."""
    norms = l1_norms(network, group, writers=False, readers=True)
    return norms if norms.any() else l1_norms(network, group)


class Space:
    """What can be kept of each group of a network within a budget, and how the agent sees it."""

    def __init__(
        self,
        network: nn.Module,
        amount: Amount,
        budget: float | None,
        lower_bound: float,
        round_to: int,
    ) -> None:
        """
        Args:
            amount: how many channels one keep ratio for all groups removes.
            budget: the share of the multiplications to keep at most; None for what that leaves.
        """
        self._costs = Multiplications(amount.groups)
        self._round_to = round_to
        self.channels = {name: group.channels for name, group in amount.groups.items()}
        self.uniform = dict(amount.removed)
        self.budget = self._costs.share(self.uniform) if budget is None else budget
        self.most = {  # of each group that may go; the uniform choice is within
            name: max(
                channels - multiple(max(1, math.ceil(lower_bound * channels)), channels, round_to),
                self.uniform[name],
            )
            for name, channels in self.channels.items()
        }
        shares = {name: 1 - self.share({name: n}) for name, n in self.channels.items()}
        self._shares = shares
        described = [
            [float(number), *_described(network, group), shares[name]]
            for number, (name, group) in enumerate(amount.groups.items())
        ]
        features = torch.tensor(described, dtype=torch.float64)
        low, high = features.min(dim=0).values, features.max(dim=0).values
        spread = torch.where(high > low, high - low, 1.0)
        self._features = ((features - low) / spread).float()
        self.state_size = self._features.shape[1] + 3

    def share(self, counts: Counts) -> float:
        """Of the dense network's multiplications, what is left."""
        return self._costs.share(counts)

    def removed(self, name: str, action: float, before: Counts) -> int:
        """How many channels of a group go where a share `action` of them is to stay.

        As few as leave the budget to the groups that come, should these keep their fewest.

        Args:
            before: of the groups that are decided.
        """
        channels = self.channels[name]
        later = {each: n for each, n in self.most.items() if each not in before}
        fewest, most = 0, self.most[name]
        while fewest < most:
            middle = (fewest + most) // 2
            fits = self.share({**later, **before, name: middle}) <= self.budget
            fewest, most = (fewest, middle) if fits else (middle + 1, most)
        wanted = channels - round(action * channels)
        kept = channels - min(max(wanted, fewest), self.most[name])
        return channels - multiple(kept, channels, self._round_to)

    def state(self, name: str, before: Counts, last: float) -> Tensor:
        """What the agent sees of a group, (state_size,): it, what was saved, what is to come."""
        names = list(self.channels)
        place = names.index(name)
        moving = [1 - self.share(before), sum(self._shares[each] for each in names[place:]), last]
        return torch.cat([self._features[place], torch.tensor(moving, dtype=torch.float32)])


def _described(network: nn.Module, group: ChannelGroup) -> list[float]:
    """Channels, weights that write them, layers that read them, and of one its shape."""
    modules = dict(network.named_modules())
    reader = modules.get(next(iter(group.readers), ""), network)
    kernel, stride = getattr(reader, "kernel_size", (1,)), getattr(reader, "stride", (1,))
    outputs = getattr(reader, "out_channels", getattr(reader, "out_features", 0))
    written = sum(written_weight(network, each).numel() for each in group.writers)
    sizes = [group.channels, written, len(group.readers), outputs]
    shape = [math.prod(kernel), math.prod(stride), isinstance(reader, nn.Linear)]
    return [float(value) for value in (*sizes, *shape)]


class Search:
    """Episodes of an agent in a space."""

    def __init__(self, space: Space, warm_up: int, seed: int) -> None:
        self._space = space
        self._agent = Agent(space.state_size, len(space.channels), warm_up, seed)
        self.episodes = 0
        self.rewards: dict[tuple[int, ...], float] = {}
        """Of each choice that was made, by the channels of each group that go."""
        self.best: dict[str, int] = {}
        """The choice of the highest reward, the first one of equals."""
        self.best_reward = -math.inf

    def episode(self, reward: Callable[[Counts], float]) -> float:
        """Makes a choice, learns from its reward, and returns that.

        Args:
            reward: of a choice; it is asked once for each one.
        """
        space, counts = self._space, dict[str, int]()
        states, actions, action = [], [], 1.0
        for name, channels in space.channels.items():
            states.append(space.state(name, counts, action))
            if self.episodes == 0:
                counts[name] = space.uniform[name]
            else:
                counts[name] = space.removed(name, self._agent.act(states[-1]), counts)
            action = 1 - counts[name] / channels
            actions.append(action)
        key = tuple(counts.values())
        if key not in self.rewards:
            self.rewards[key] = reward(counts)
        value = self.rewards[key]
        if value > self.best_reward:
            self.best, self.best_reward = counts, value
        self._agent.learn(states, actions, value)
        self.episodes += 1
        return value
