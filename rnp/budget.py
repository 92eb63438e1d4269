"""The penalty that a budget asks for.

To have the least loss at a mean cost of B at most is to pay a price for what is computed, a
Lagrange multiplier: RNP's penalty. It rises while the decisions cost more than B and falls while
they cost less, as learning goes on (dual ascent: Tessler, Mankowitz, Mannor 2019, "Reward
constrained policy optimization", arXiv 1805.11074).

Where we differ: the logarithm of the penalty moves, as useful ones lie orders of magnitude apart;
only once the Q-values have had time to mean something; and in smaller and smaller steps, as the
rate of learning does. In the end the penalty moves once more, and the Q-values by what that makes
of each group's price, until the budget is met on validation images, whose labels are not looked
at: they are not augmented as those that were learnt from, no action is random any more, and where
images are hardly told apart, all of them would buy a group at one price and none at the next.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp.decision import DecisionNetwork
from rnp.environment import Environment
from rnp.play import play
from rnp.prefix_cost import PrefixCost

# In losses of the mean image: most budgets end within a factor of three of the first, and beyond
# the others a group is worth nothing, or everything.
FIRST, LEAST, MOST = 0.03, 3e-4, 3.0
HELD = 0.2  # share of the steps before the penalty moves
REACH = 60.0  # the logarithm's way in all steps, had they the first one's size and an excess of 1
SETTLED_ON, BATCH_SIZE = 2048, 256  # images at most that the budget is met on
HALVINGS = 12


@dataclass(frozen=True)
class Budget:
    """What decisions may cost."""

    cost: PrefixCost
    share: float
    """Of the dense network's multiplications, in the mean over images."""

    def adjusted(self, penalty: Tensor, actions: Tensor, progress: float, steps: int) -> Tensor:
        """The penalty |p| after a step of learning, in losses of the mean image; a scalar.

        Args:
            penalty: the one before.
            actions: those that the decision network now thinks best, (n, T), from 0.
            progress: share of the steps that are done, from 0 to 1.
            steps: in all.
        """
        if progress < HELD:
            return penalty
        excess = self.cost.of_images(actions).mean() / self.cost.dense - self.share
        rate = (1 - progress) / (1 - HELD) * REACH / steps
        return (penalty * (rate * excess).exp()).clamp(LEAST, MOST)

    @torch.no_grad()
    def settle(
        self,
        decision: DecisionNetwork,
        environment: Environment,
        penalty: float,
        price: Tensor,
        generator: torch.Generator,
    ) -> float:
        """Moves the Q-values to those of the least penalty at which the budget is met.

        Only a group's own price moves with it, not what the convs after it may come to cost.

        Args:
            environment: of images as the network will meet them; what they lose is not looked at.
            penalty: |p|, the one that was learnt with.
            price: what it was multiplied by at each step, (T,).
            generator: on the CPU.

        Returns:
            The new penalty, from 0: groups that are free.
        """
        images = torch.randperm(environment.n_images, generator=generator)[:SETTLED_ON]
        learnt = decision.offsets.clone()
        groups = torch.arange(learnt.shape[1], device=learnt.device)
        prices = price.to(learnt)[:, None] * groups

        def move(to: float) -> None:
            decision.offsets.copy_(learnt - (to - penalty) * prices)

        def is_met(penalty: float) -> bool:
            move(penalty)
            played = (
                play(decision, environment.start(batch), 0.0, generator)
                for batch in images.split(BATCH_SIZE)
            )
            spent = torch.cat([self.cost.of_images(each.actions) for each in played])
            return spent.double().mean().item() <= self.share * self.cost.dense

        settled = _lowest(is_met)
        move(settled)
        return settled


def _lowest(is_met: Callable[[float], bool]) -> float:
    """The lowest penalty from 0 on at which a budget is met, about.

    There is one: a penalty at which nothing but the first groups is bought.
    """
    if is_met(0.0):
        return 0.0
    too_low, step = 0.0, LEAST
    while not is_met(too_low + step):
        too_low, step = too_low + step, 2 * step
        assert step < 1e9, "the smallest prefixes were checked to be within the budget"
    high = too_low + step
    for _ in range(HALVINGS):
        middle = (too_low + high) / 2
        too_low, high = (too_low, middle) if is_met(middle) else (middle, high)
    return high
