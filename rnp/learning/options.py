"""Options of Q-learning: what Lin et al. 2017 leave open, with what was found to work."""

from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rnp.learning.budget import Costs
from rnp.prefix_cost import Deciding, PrefixCost
from testbed.data import Splits

DEFAULT_P = -0.1  # the paper's

Probability = Annotated[float, Field(ge=0, le=1)]


class ActionCosts(Costs, Protocol):
    """What actions cost, and what that means for learning them."""

    def prices(self) -> Tensor:
        """What an action beyond the first adds at each step, (T,), relative to the mean step's."""
        ...

    def budget(self, keep_multiplications: float) -> float:
        """Multiplications that a share of the dense ones comes to; a ValueError below the least."""
        ...


def check_one_price(
    p: float | None, alpha: float | None, keep_multiplications: float | None
) -> None:
    """
    Raises:
        ValueError: if a budget is given together with what would be found for it.
    """
    if p is not None and keep_multiplications is not None:
        raise ValueError("give p or keep_multiplications, not both")
    if alpha is not None and keep_multiplications is not None:
        raise ValueError(
            "leave alpha out where keep_multiplications is given: only |p| / alpha matters, "
            "and the p for the budget is found"
        )


class QLearning(BaseModel):
    """What the paper leaves open, with what was found to work."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keep_multiplications: float | None = Field(default=None, gt=0, le=1)
    """In place of p: share of the dense network's multiplications to come to, in the mean over
    images and with the decisions' own. The p for it is found while learning, and where the steps
    are too few for that (300 are), in part after it: see rnp/learning/budget.py."""
    p: float | None = Field(default=None, le=0, allow_inf_nan=False)
    """Penalty of every channel group beyond the first, as in the paper; -0.1 where no budget is
    given. Only |p| / alpha matters: what a group must save in cross-entropy."""
    price: Literal["group", "multiplications"] = "group"
    """What p is paid for. group: each alike, as in the paper. multiplications: a conv's groups in
    proportion to what they add to the cost; the mean conv's cost p."""
    alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of an image's cross-entropy. None: so that it weighs 1 in the mean over images under
    random actions, which makes p mean the same for every network."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount from conv to conv. 1: episodes are short and end, and a group is worth the same
    wherever it is saved."""
    steps: int = Field(default=2000, ge=1)
    """Batches learnt from; with more, policies got no better."""
    batch_size: int = Field(default=256, ge=1)
    """Images a batch; losses of single images vary much."""
    q_learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, its usual rate; falls linearly to 0."""
    q_weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of AdamW, biases excepted. Above 0 images are told apart only where many show that it pays,
    not where single ones' losses were learnt by heart: 10 was better than 1 in 300 steps at a
    q_learning_rate of 3e-3, and no worse in 2000 at 1e-3."""
    epsilon: tuple[Probability, Probability] = (1.0, 0.1)
    """Share of random actions, at first and at last. From 1, as the first Q-values mean nothing;
    never 0, so that what was found bad is looked at again."""
    exploration: float = Field(default=0.6, gt=0, le=1)
    """Share of the steps in which epsilon falls, linearly; the rest is for the values near the
    policy."""
    q_loss: Literal["squared", "huber"] = "squared"
    """Of the error of Q. squared: its minimum is the mean return (cost_to_go: mean difference);
    huber cares less for the few images of great loss, which decide where groups are worth their
    price."""
    target_network: int = Field(default=0, ge=0)
    """Steps between copies of the network that gives td's targets. 0: none, as episodes of a few
    steps did not need it."""
    learner: Literal["td", "cost_to_go"] = "td"
    """td: the paper's. cost_to_go: regression on the differences between the exact returns of all
    actions of an image; far better with many convs. Each is played to its end, so that an image
    costs up to k / 2 passes for each conv, unless there are few combinations: ask for fewer steps
    (300 of 64 images), a higher q_learning_rate (3e-3) and q_weight_decay (10)."""

    @model_validator(mode="after")
    def _price_or_budget(self) -> Self:
        check_one_price(self.p, self.alpha, self.keep_multiplications)
        return self

    def epsilon_at(self, step: int) -> float:
        """The share of random actions at a step, from 0."""
        first, last = self.epsilon
        return first + (last - first) * min(1.0, step / (self.exploration * self.steps))

    def costs(self, network: Any, data: Splits) -> ActionCosts:
        """What the actions of a network of the method's kind cost."""
        return PrefixCost.of_runtime(network, data)

    def check(self, network: Deciding, data: Splits) -> None:
        """Refuses what cannot be learnt, before anything is trained.

        Raises:
            ValueError: if the budget is below the cost of the least actions.
        """
        if self.keep_multiplications is not None:
            self.costs(network, data).budget(self.keep_multiplications)
