"""Q-learning of the decision network: Lin et al. 2017, section 3.3.

Per image, action a (from 0) at a conv is rewarded with `a * p`, the last one also with
`-alpha * L`, L being that image's own cross-entropy. The loss is the squared difference of
`Q(s_t, a_t)` and `r_t + gamma * max_a Q(s_{t+1}, a)`, with nothing to follow after the last conv.

Where we differ: the paper does not say how Q is optimised, explored and scaled; `QLearning` has
what we chose, and why. Gradients flow back through the recurrent state to the convs before; targets
are constants. alpha is set from the losses of random actions, before a learning phase begins.
Besides one-step Q-learning there is regression on the exact cost-to-go: what each action of an
image brings more than the others, if the present policy goes on from there.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rnp.budget import LEAST, Budget
from rnp.decision import DecisionNetwork
from rnp.environment import BackboneEnvironment, Environment, batches
from rnp.loss_table import MOST_COMBINATIONS, LossTable, n_combinations, passes_per_image
from rnp.play import play, q_values
from rnp.prefix_cost import PrefixCost
from rnp.runtime import RuntimeNetwork
from rnp.targets import advantages, exact_returns, q_loss, rewards, td_targets
from testbed.data import Augmentation, Splits
from testbed.machine import Precision
from testbed.prediction import evaluating
from testbed.training import DivergedError, Report, ignore

EXAMPLES = 4096  # images under random actions, at most, that alpha and the features' scale are from
REPORTS = 10  # in a learning phase
DEFAULT_P = -0.1  # the paper's

Probability = Annotated[float, Field(ge=0, le=1)]


class QLearning(BaseModel):
    """What the paper leaves open, with what was found to work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_multiplications: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="In place of p: share of the dense network's multiplications to come to, in "
        "the mean over images and with the decisions' own. The p for it is found while learning, "
        "and where the steps are too few for that (300 are), in part after it: see rnp/budget.py.",
    )
    p: float | None = Field(
        default=None,
        le=0,
        allow_inf_nan=False,
        description="Penalty of every channel group beyond the first, as in the paper; -0.1 where "
        "no budget is given. Only |p| / alpha matters: what a group must save in cross-entropy.",
    )
    price: Literal["group", "multiplications"] = Field(
        default="group",
        description="What p is paid for. group: each alike, as in the paper. multiplications: a "
        "conv's groups in proportion to what they add to the cost; the mean conv's cost p.",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Weight of an image's cross-entropy. None: so that it weighs 1 in the mean "
        "over images under random actions, which makes p mean the same for every network.",
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Discount from conv to conv. 1: episodes are short and end, and a group is "
        "worth the same wherever it is saved.",
    )
    steps: int = Field(
        default=2000, ge=1, description="Batches learnt from; with more, policies got no better."
    )
    batch_size: int = Field(
        default=256, ge=1, description="Images a batch; losses of single images vary much."
    )
    q_learning_rate: float = Field(
        default=1e-3, gt=0, description="Of AdamW, its usual rate; falls linearly to 0."
    )
    q_weight_decay: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Of AdamW, biases excepted. Above 0 images are told apart only where many show "
        "that it pays, not where single ones' losses were learnt by heart: 10 was better than 1 in "
        "300 steps at a q_learning_rate of 3e-3, and no worse in 2000 at 1e-3.",
    )
    epsilon: tuple[Probability, Probability] = Field(
        default=(1.0, 0.1),
        description="Share of random actions, at first and at last. From 1, as the first Q-values "
        "mean nothing; never 0, so that what was found bad is looked at again.",
    )
    exploration: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Share of the steps in which epsilon falls, linearly; the rest is for the "
        "values near the policy.",
    )
    q_loss: Literal["squared", "huber"] = Field(
        default="squared",
        description="Of the error of Q. squared: its minimum is the mean return (cost_to_go: mean "
        "difference); huber cares less for the few images of great loss, which decide where groups "
        "are worth their price.",
    )
    target_network: int = Field(
        default=0,
        ge=0,
        description="Steps between copies of the network that gives td's targets. 0: none, as "
        "episodes of a few steps did not need it.",
    )
    learner: Literal["td", "cost_to_go"] = Field(
        default="td",
        description="td: the paper's. cost_to_go: regression on the differences between the exact "
        "returns of all actions of an image; far better with many convs. Each is played to its "
        "end, so that an image costs up to k / 2 passes for each conv, unless there are few "
        "combinations: ask for fewer steps (300 of 64 images), a higher q_learning_rate (3e-3) and "
        "q_weight_decay (10).",
    )

    @model_validator(mode="after")
    def _price_or_budget(self) -> Self:
        if self.p is not None and self.keep_multiplications is not None:
            raise ValueError("give p or keep_multiplications, not both")
        if self.alpha is not None and self.keep_multiplications is not None:
            raise ValueError(
                "leave alpha out where keep_multiplications is given: only |p| / alpha matters, "
                "and the p for the budget is found"
            )
        return self

    def epsilon_at(self, step: int) -> float:
        """The share of random actions at a step, from 0."""
        first, last = self.epsilon
        return first + (last - first) * min(1.0, step / (self.exploration * self.steps))

    def check(self, network: RuntimeNetwork, data: Splits) -> None:
        """Refuses what cannot be learnt, before anything is trained.

        Raises:
            ValueError: if the budget is below the cost of the least prefixes.
        """
        if self.keep_multiplications is not None:
            cost = PrefixCost.of_runtime(network, data)
            cost.check_reachable(self.keep_multiplications * cost.dense)


@dataclass(frozen=True)
class Learned:
    """What a learning phase came to."""

    alpha: float
    p: float
    """As it was given, or as the budget asked for it: what a group (of the mean conv) costs."""
    penalty_in_cross_entropy: float
    """|p| / alpha: what a channel group (of the mean conv, if that is the price) must save of an
    image's cross-entropy to be computed."""
    backbone_images: float
    """Images that went through the backbone for it, in full passes."""


def learn_decisions(
    network: RuntimeNetwork,
    data: Splits,
    options: QLearning,
    *,
    seed: int,
    device: torch.device,
    report: Report = ignore,
    precision: Precision = "auto",
) -> Learned:
    """Teaches `network.decision` in place, from the training images; the backbone stays as it is.

    `network` ends on `device`; its modules stay in training or evaluation mode, as each was. The
    same seed gives the same weights, bit for bit; the caller's random state stays as it was.

    Args:
        seed: of batches, augmentation and exploration.
        report: gets what `learn` reports.
        precision: of the backbone's matrix products; the decision network is float32.

    Raises:
        ValueError: as `QLearning.check`.
        DivergedError: if the errors of Q are not finite.
    """
    options.check(network, data)
    network.to(device)
    budget, price = _budget_and_price(network, data, options)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    with evaluating(network):
        environment: Environment
        if _tabulates(network, data, options):
            environment = LossTable(network, data, generator, device, precision)
        else:
            environment = BackboneEnvironment(network, data, generator, device, precision)
        learned = learn(network.decision, environment, options, generator, report, price, budget)
    if budget is None:
        return learned
    return meet_budget(network, data, options, learned, seed=seed, device=device)


def meet_budget(
    network: RuntimeNetwork,
    data: Splits,
    options: QLearning,
    learned: Learned,
    *,
    seed: int,
    device: torch.device,
) -> Learned:
    """Moves p, and `network.decision` with it, so that the budget is met as the backbone now is.

    On validation images, not augmented, in float32; without their labels.

    Args:
        network: on `device`; its modules stay in training or evaluation mode, as each was.
        options: with a budget.
        learned: what the decisions were learnt with, or moved to before.
        seed: of which validation images.
    """
    budget, price = _budget_and_price(network, data, options)
    assert budget is not None
    generator = torch.Generator().manual_seed(seed)
    as_met = replace(data, train=data.validation, augmentation=Augmentation(crop=0, flip=False))
    with evaluating(network):
        environment = BackboneEnvironment(network, as_met, generator, device, "float32")
        penalty = budget.settle(network.decision, environment, -learned.p, price, generator)
    return replace(
        learned,
        p=0.0 - penalty,
        penalty_in_cross_entropy=penalty / learned.alpha,
        backbone_images=learned.backbone_images + environment.backbone_images,
    )


def _budget_and_price(
    network: RuntimeNetwork, data: Splits, options: QLearning
) -> tuple[Budget | None, Tensor]:
    cost, share = PrefixCost.of_runtime(network, data), options.keep_multiplications
    n_steps = len(network.decision.inputs)
    price = cost.group_prices() if options.price == "multiplications" else torch.ones(n_steps)
    return None if share is None else Budget(cost, share), price


def _tabulates(network: RuntimeNetwork, data: Splits, options: QLearning) -> bool:
    """Whether a table of all combinations is small; for td, also the shorter way."""
    if n_combinations(network.flow) > MOST_COMBINATIONS:
        return False
    if options.learner == "cost_to_go":
        return True
    in_table = passes_per_image(network, data) * len(data.train)
    return in_table <= options.steps * options.batch_size


def learn(
    decision: DecisionNetwork,
    environment: Environment,
    options: QLearning,
    generator: torch.Generator,
    report: Report = ignore,
    price: Tensor | None = None,
    budget: Budget | None = None,
) -> Learned:
    """Learns Q in `environment`, wherever its episodes come from.

    Args:
        generator: on the CPU.
        price: what p is multiplied by at each step, (T,); None for 1.
        budget: what p is found for; None where it is given, or the default.
        report: gets alpha, then some ten times q_step, q_loss and mean_return (the means since the
            last time, alpha and p included), p, penalty_in_cross_entropy and epsilon.

    Raises:
        ValueError: if alpha is to be set, and the mean loss of random actions is 0 or not finite.
        DivergedError: if the errors of Q are not finite.
    """
    decision.offsets.zero_()  # what a budget moved before: the penalty begins anew
    alpha = prepare(decision, environment, options, generator)
    report({"alpha": alpha})
    price = torch.ones(len(decision.inputs)) if price is None else price
    price = price.to(environment.device)
    given = DEFAULT_P if options.p is None else options.p
    first = -given if budget is None else LEAST
    penalty = torch.tensor(first, dtype=torch.float64, device=price.device)
    frozen = copy.deepcopy(decision)  # the target network, where there is one
    biases: dict[str, Any] = {"params": [b for b in decision.parameters() if b.ndim == 1]}
    weights: dict[str, Any] = {"params": [w for w in decision.parameters() if w.ndim > 1]}
    weights["weight_decay"] = options.q_weight_decay
    optimizer = torch.optim.AdamW([weights, biases], weight_decay=0.0, fused=True)
    report_every = math.ceil(options.steps / REPORTS)
    losses, returns = [], []
    drawn = batches(environment.n_images, options.batch_size, generator)
    for step, images in zip(range(options.steps), drawn, strict=False):
        epsilon, penalties = options.epsilon_at(step), -penalty * price
        episodes = environment.start(images)
        beginning = episodes.fork()
        played = play(decision, episodes, epsilon, generator)
        reward = rewards(played.actions, played.losses, penalties, alpha)
        if options.learner == "cost_to_go":
            targets = exact_returns(decision, beginning, played, penalties, alpha, options.gamma)
            loss = q_loss(advantages(played.values), advantages(targets), options.q_loss)
        else:
            if options.target_network and step % options.target_network == 0:
                frozen.load_state_dict(decision.state_dict())
            source = q_values(frozen, played.features) if options.target_network else played.values
            targets = td_targets(reward, source, options.gamma)
            taken = played.values.gather(2, played.actions[:, :, None]).squeeze(2)
            loss = q_loss(taken, targets, options.q_loss)
        for group in optimizer.param_groups:
            group["lr"] = options.q_learning_rate * (1 - step / options.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if budget is not None:
            best = played.values.argmax(dim=2)
            penalty = budget.adjusted(penalty, best, step / options.steps)
        losses.append(loss.detach())
        returns.append(reward.sum(dim=1).mean())
        if (step + 1) % report_every == 0 or step + 1 == options.steps:
            recent, mean_return = (torch.stack(each).mean().item() for each in (losses, returns))
            if not math.isfinite(recent):
                raise DivergedError(
                    f"Q-learning diverged before step {step + 1} of {options.steps}: its loss is "
                    f"{recent}. Try a q_learning_rate well below {options.q_learning_rate:g}."
                )
            figures = {"q_loss": recent, "mean_return": mean_return, "epsilon": epsilon}
            now = {"p": -penalty.item(), "penalty_in_cross_entropy": penalty.item() / alpha}
            report({"q_step": step + 1, **figures, **now})
            losses, returns = [], []
    optimizer.zero_grad()  # nothing is left behind but weights
    p = -penalty.item()
    return Learned(alpha, p, -p / alpha, environment.backbone_images)


@torch.no_grad()
def prepare(
    decision: DecisionNetwork,
    environment: Environment,
    options: QLearning,
    generator: torch.Generator,
) -> float:
    """Sets the scale of the features and returns alpha, both from episodes of random actions.

    Raises:
        ValueError: if alpha is to be set, and the mean loss is 0 or not finite.
    """
    images = torch.randperm(environment.n_images, generator=generator)[:EXAMPLES]
    examples = [
        play(decision, environment.start(batch), 1.0, generator)
        for batch in images.split(options.batch_size)
    ]
    for step in range(len(decision.inputs)):
        decision.standardise(step, torch.cat([played.features[step] for played in examples]))
    if options.alpha is not None:
        return options.alpha
    mean = torch.cat([played.losses for played in examples]).mean().item()
    if not 0 < mean < math.inf:
        raise ValueError(
            f"alpha makes the mean loss under random actions 1, but that loss is {mean:g}. "
            "Give alpha itself."
        )
    return 1 / mean
