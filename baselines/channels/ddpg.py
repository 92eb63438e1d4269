"""DDPG: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", ICLR, for
episodes of a few steps whose actions are single numbers from 0 to 1, as AMC uses it.

Sizes, rates and noise are those of AMC's published code. Everything is on the CPU, in float32.
"""

import copy
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
BATCH = 64
SOFT_UPDATE = 0.01
DISCOUNT = 1.0
FIRST_NOISE, NOISE_DECAY = 0.5, 0.95  # deviation of the actions, and its factor each episode
BASELINE_STEP = 0.5  # of the moving average of rewards
EPISODES_KEPT = 100


class Agent:
    """Learns from whole episodes; the reward of an episode is that of each of its steps."""

    def __init__(self, state_size: int, steps: int, warm_up: int, seed: int) -> None:
        """
        Args:
            steps: of an episode.
            warm_up: episodes with random actions, before it learns.
        """
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            self._actor = _network(state_size)
            self._critic = _network(state_size + 1)
        self._slow_actor, self._slow_critic = (
            copy.deepcopy(self._actor),
            copy.deepcopy(self._critic),
        )
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), lr=CRITIC_RATE, fused=True)
        self._replay: deque[tuple[Tensor, float, float, Tensor, bool]] = deque(
            maxlen=EPISODES_KEPT * steps
        )
        self._warm_up = warm_up
        self._episodes = 0
        self._baseline: float | None = None

    def act(self, state: Tensor) -> float:
        """An action from 0 to 1: random in the warm-up, then the actor's with noise that decays."""
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64)
        if self._episodes < self._warm_up:
            return drawn.item()
        with torch.no_grad():
            mean = self._actor(state).sigmoid().double().squeeze()
        deviation = FIRST_NOISE * NOISE_DECAY ** (self._episodes - self._warm_up)
        low, high = (torch.special.ndtr((end - mean) / deviation) for end in (0.0, 1.0))
        noise = torch.special.ndtri(low + drawn * (high - low))  # normal, cut off at 0 and 1
        return (mean + deviation * noise).clamp(0, 1).item()

    def learn(self, states: Sequence[Tensor], actions: Sequence[float], reward: float) -> None:
        """Takes an episode in, and after the warm-up makes as many updates as it has steps."""
        following = [*states[1:], states[-1]]
        for step, (state, action, after) in enumerate(zip(states, actions, following, strict=True)):
            self._replay.append((state, action, reward, after, step == len(states) - 1))
        if self._episodes >= self._warm_up:
            for _ in states:
                self._update()
        self._episodes += 1

    def _update(self) -> None:
        places = torch.randint(len(self._replay), (BATCH,), generator=self._generator).tolist()
        states, actions, rewards, following, ends = zip(
            *(self._replay[place] for place in places), strict=True
        )
        state, after = torch.stack(states), torch.stack(following)
        action = torch.tensor(actions, dtype=torch.float32)[:, None]
        gained = torch.tensor(rewards, dtype=torch.float32)[:, None]
        goes_on = ~torch.tensor(ends)[:, None]
        mean = gained.mean().item()
        before = mean if self._baseline is None else self._baseline
        self._baseline = before + BASELINE_STEP * (mean - before)
        with torch.no_grad():
            then = self._slow_critic(torch.cat([after, self._slow_actor(after).sigmoid()], dim=1))
            target = gained - self._baseline + DISCOUNT * goes_on * then
        value = self._critic(torch.cat([state, action], dim=1))
        _step(self._critic_steps, nn.functional.mse_loss(value, target))
        chosen = self._actor(state).sigmoid()
        _step(self._actor_steps, -self._critic(torch.cat([state, chosen], dim=1)).mean())
        for slow, fast in (
            (self._slow_actor, self._actor),
            (self._slow_critic, self._critic),
        ):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data.lerp_(new.data, SOFT_UPDATE)


def _network(inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
