"""The penalty that a budget asks for.

To have the least loss at a mean cost of B at most is to pay a price for every multiplication, a
Lagrange multiplier: RNP's penalty. It rises while the decisions cost more than B and falls while
they cost less, as learning goes on (dual ascent: Tessler, Mankowitz, Mannor 2019, "Reward
constrained policy optimization", arXiv 1805.11074).

Where we differ: the logarithm of the penalty moves, as useful ones lie orders of magnitude apart,
and in smaller and smaller steps, as the rate of learning does. In the end the Q-values are shifted
by a share of the penalty until the budget is met on validation images, whose labels are not looked
at: they are not augmented as those that were learnt from, and where images are hardly told apart,
all of them would buy a group at one price and none at the next.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rnp.decision import DecisionNetwork
from rnp.environment import Environment
from rnp.play import play
from rnp.prefix_cost import PrefixCost

FIRST_PENALTY = 0.03  # most budgets of most networks end within a factor of three of it
REACH = 50.0  # the logarithm's way in all steps, had they the first one's size and an excess of 1
SETTLED_ON, BATCH_SIZE = 2048, 256  # images at most that the budget is met on
HALVINGS = 12  # of the range of prices, from none to twice the one that was learnt with


@dataclass(frozen=True)
class Budget:
    """What decisions may cost."""

    cost: PrefixCost
    share: float
    """Of the dense network's multiplications, in the mean over images."""

    def adjusted(self, penalty: Tensor, actions: Tensor, progress: float, steps: int) -> Tensor:
        """The penalty |p| after a step of learning, a scalar like the one before.

        Args:
            actions: those that the decision network now thinks best, (n, T), from 0.
            progress: share of the steps that are done, from 0 to 1.
            steps: in all.
        """
        excess = self.cost.of_images(actions).mean() / self.cost.dense - self.share
        rate = (1 - progress) * REACH / steps
        return penalty * (rate * excess).exp()

    @torch.no_grad()
    def settle(
        self,
        decision: DecisionNetwork,
        environment: Environment,
        penalty: float,
        generator: torch.Generator,
    ) -> None:
        """Shifts the Q-values of all groups by as much of the penalty each as the budget asks for.

        What is spent stays below the budget where no group is worth more than nothing.

        Args:
            environment: of images as the network will meet them; what they lose is not looked at.
            penalty: |p|, that the values were learnt with.
            generator: on the CPU.
        """
        n = min(environment.n_images, SETTLED_ON)
        images = torch.randperm(environment.n_images, generator=generator)[:n]
        learnt = decision.decoder.bias.clone()
        groups = torch.arange(len(learnt), device=learnt.device)

        def excess(price: float) -> float:
            """Multiplications of all images beyond the budget, at a price in penalties."""
            decision.decoder.bias.copy_(learnt - (price - 1) * penalty * groups)
            played = (
                play(decision, environment.start(batch), 0.0, generator)
                for batch in images.split(BATCH_SIZE)
            )
            spent = torch.stack([self.cost.of_images(each.actions).sum() for each in played])
            return (spent.sum() - n * self.share * self.cost.dense).item()

        free, dear = 0.0, 2.0
        for _ in range(HALVINGS):
            middle = (free + dear) / 2
            free, dear = (middle, dear) if excess(middle) > 0 else (free, middle)
        decision.decoder.bias.copy_(learnt - (dear - 1) * penalty * groups)
