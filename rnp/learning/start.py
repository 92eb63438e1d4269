"""Start of the learning for a budget: the best actions that are the same for all images.

A table of all combinations of actions has them. From there on only what tells images apart must be
learnt. Learning that begins where all is computed gives up one block after the other, and ends at
other blocks than those that are best together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnp.execution.decision import DecisionNetwork
from rnp.learning.budget import LEAST, ROUNDING, Budget
from rnp.learning.loss_table import LossTable


@dataclass(frozen=True)
class Start:
    """Of T steps with two actions each."""

    actions: tuple[int, ...]
    """The same for all images: those of least mean loss that the budget allows."""
    gains: Tensor
    """(T,) float64: of the mean cross-entropy, what the second action saves at each step, with
    `actions` at the others."""
    penalty: float
    """In cross-entropy: in the middle between what `actions` buys and what it does not."""

    @torch.no_grad()
    def begin(self, decision: DecisionNetwork, alpha: float, price: Tensor) -> float:
        """Gives a decision network the mean values of both actions, and nothing else; returns |p|.

        Args:
            price: what p is multiplied by at each step, (T,).
        """
        nn.init.zeros_(decision.decoder.weight)
        nn.init.zeros_(decision.decoder.bias)
        penalty = max(alpha * self.penalty, LEAST)
        worth = (alpha * self.gains.to(price) - penalty * price).abs()
        worth[torch.tensor(self.actions, device=price.device) == 0] *= -1
        decision.offsets.copy_(torch.stack([torch.zeros_like(worth), worth], dim=1))
        return penalty


def best_fixed(table: LossTable, budget: Budget, price: Tensor) -> Start:
    """What the budget allows, and the table's images lose least with.

    Args:
        table: of two actions.
        price: what p is multiplied by at each step, (T,).
    """
    assert table.n_actions == 2
    losses, price = table.losses.double().mean(dim=0).cpu(), price.double()
    n_steps = len(table.features)
    places = 2 ** torch.arange(n_steps - 1, -1, -1)
    actions = torch.arange(len(losses))[:, None] // places % 2
    limit = budget.share * budget.cost.dense * (1 + ROUNDING)
    best = int(losses.where(budget.cost.of_images(actions) <= limit, torch.inf).argmin())
    computed = actions[best] == 1
    without = best - actions[best] * places
    gains = losses[without] - losses[without + places]
    each = gains / price
    bought, left = each[computed].sort().values, each[~computed].sort().values
    ends = [*bought[:1], *left[-1:]]  # one alone where all or nothing is bought
    return Start(tuple(actions[best].tolist()), gains, torch.stack(ends).mean().item())
