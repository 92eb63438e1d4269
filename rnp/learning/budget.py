"""Budget: the penalty at which decisions cost what is asked for, in the mean over images.

That penalty is the constraint's Lagrange multiplier. While decisions are learnt it rises where they
cost more than the budget, and falls where they cost less (dual ascent: Tessler, Mankowitz, Mannor
2019, "Reward constrained policy optimization", arXiv 1805.11074).

Where we differ: without a `Start` learning begins where nearly all is computed, as groups that pay
only together are not found where few are. The penalty's logarithm moves, as useful penalties lie
orders of magnitude apart; it moves once the Q-values have had time to mean something, in steps that
they can follow (of a dozen convs, no single group is worth anything beyond some point), and in ever
smaller ones.

In the end the penalty moves once more, and the Q-values with each group's price, until validation
images meet the budget. Their labels are not used. They are not augmented, no action is random any
more, and images that are hardly told apart all buy a group at one price and none at the next. After
few steps that is most of the way: 300 come to 0.011 at the most, 600 to 0.4. What groups save is
then learnt near the full width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork

LEAST, MOST = 3e-4, 3.0  # in losses of the mean image: there a group costs nothing, or everything
HELD = 0.2  # share of the steps before the penalty moves
RATE = 0.045  # the logarithm's largest step, with all excess: one that Q-values followed at 3e-3
LEAST_ROOM = 0.05  # of excess, relative to the dense cost, where the budget is near either end
HALVINGS = 12
ROUNDING = 1e-9  # of costs, relative: a budget may be just that of the smallest prefixes


class Costs(Protocol):
    """What actions cost."""

    dense: int
    """Multiplications of an image in the dense network."""

    def of_images(self, actions: Tensor) -> Tensor:
        """Multiplications of each image, (n,) float64, that takes its own actions, (n, T)."""
        ...


@dataclass(frozen=True)
class Budget:
    """What decisions may cost."""

    cost: Costs
    share: float
    """Of the dense network's multiplications, in the mean over images."""

    def adjusted(self, penalty: Tensor, actions: Tensor, progress: float) -> Tensor:
        """The penalty |p| after a step of learning, in losses of the mean image; a scalar.

        Args:
            penalty: the one before.
            actions: those that the decision network now thinks best, (n, T), from 0.
            progress: share of the steps that are done, from 0 to 1.
        """
        if progress < HELD:
            return penalty
        spent, cheapest = (
            self.cost.of_images(each).mean() / self.cost.dense
            for each in (actions, torch.zeros_like(actions[:1]))
        )
        room = torch.where(spent > self.share, 1 - self.share, self.share - cheapest)
        excess = (spent - self.share) / room.clamp(min=LEAST_ROOM)
        rate = ((1 - progress) / (1 - HELD)) ** 2 * RATE
        return (penalty * (rate * excess).exp()).clamp(LEAST, MOST)

    @torch.no_grad()
    def settle(
        self,
        decision: DecisionNetwork,
        taken: Callable[[], Tensor],
        penalty: float,
        price: Tensor,
    ) -> float:
        """Moves the Q-values to those of the least penalty at which the budget is met.

        Only a group's own price moves with it, not what the convs after it may come to cost.

        Args:
            taken: gives the actions, (n, T), that images as the network will meet them take by the
                values as they then are.
            penalty: |p|, the one that was learnt with.
            price: what it was multiplied by at each step, (T,).

        Returns:
            The new penalty, from 0: groups that are free.
        """
        learnt = decision.offsets.clone()
        groups = torch.arange(learnt.shape[1], device=learnt.device)
        prices = price.to(learnt)[:, None] * groups

        def move(to: float) -> None:
            decision.offsets.copy_(learnt - (to - penalty) * prices)

        def is_met(penalty: float) -> bool:
            move(penalty)
            spent = self.cost.of_images(taken()).mean().item()
            return spent <= self.share * self.cost.dense * (1 + ROUNDING)

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
