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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.budget import LEAST, Budget
from rnp.learning.environment import BackboneEnvironment, Environment, batches
from rnp.learning.loss_table import MOST_COMBINATIONS, LossTable, n_combinations, passes_per_image
from rnp.learning.options import DEFAULT_P, QLearning
from rnp.learning.rollout import q_values, roll_out
from rnp.learning.start import Start, best_fixed
from rnp.learning.targets import advantages, exact_returns, q_loss, rewards, td_targets
from rnp.prefix_cost import Deciding
from testbed.data import Augmentation, Splits
from testbed.method import Run
from testbed.prediction import evaluating
from testbed.training import DivergedError, Report, ignore

EXAMPLES = 4096  # images under random actions, at most, that alpha and the features' scale are from
REPORTS = 10  # in a learning phase
SETTLED_ON, BATCH_SIZE = 2048, 256  # images at most that a budget is met on


@dataclass(frozen=True)
class Learned:
    """What a learning phase came to."""

    alpha: float
    p: float
    """As it was given, or as the budget asked for it: what a group (of the mean conv) costs."""
    backbone_images: float
    """Images that went through the backbone for it, in full passes."""

    @property
    def penalty_in_cross_entropy(self) -> float:
        """What a channel group (of the mean conv, if that is the price) must save to be computed.

        Of an image's cross-entropy: |p| / alpha.
        """
        return abs(self.p) / self.alpha


def learn_decisions(
    network: Deciding,
    data: Splits,
    options: QLearning,
    run: Run,
    phase: int,
    from_best_fixed: bool = False,
) -> Learned:
    """Teaches `network.decision` in place, from the training images; the backbone stays as it is.

    `network` ends on the run's device; its modules stay in training or evaluation mode, as each
    was. The same seed gives the same weights, bit for bit; the caller's random state stays as it
    was. The decision network is float32, the backbone's matrix products as in fine-tuning.

    Args:
        run: gets what `learn` reports. Its epochs are not touched.
        phase: of learning in the run: each has random numbers of its own.
        from_best_fixed: begin the learning for a budget at the best actions that are the same for
            all images, if a table has them. Else it begins where nearly all is computed.

    Raises:
        ValueError: as `QLearning.check`.
        DivergedError: if the errors of Q are not finite.
    """
    options.check(network, data)
    network.to(run.device)
    budget, price = _budget_and_price(network, data, options)
    generator, precision = _generator(run, phase), run.fine_tuning.precision
    with evaluating(network):
        live = BackboneEnvironment(network, data, generator, run.device, precision)
        environment = LossTable(live) if tabulates(network, data, options) else live
        start = None
        if from_best_fixed and budget is not None and isinstance(environment, LossTable):
            start = best_fixed(environment, budget, price)
        learned = learn(
            network.decision, environment, options, generator, run.report, price, budget, start
        )
    return learned if budget is None else meet_budget(network, data, options, learned, run, phase)


def meet_budget(
    network: Deciding,
    data: Splits,
    options: QLearning,
    learned: Learned,
    run: Run,
    phase: int = 0,
) -> Learned:
    """Moves p, and `network.decision` with it, so that the budget is met as the backbone now is.

    On validation images, not augmented, in float32; without their labels.

    Args:
        network: on the run's device; its modules stay in their modes, as each was.
        options: with a budget.
        learned: what the decisions were learnt with, or moved to before.
        phase: tells which validation images.
    """
    budget, price = _budget_and_price(network, data, options)
    assert budget is not None
    generator = _generator(run, phase)
    as_met = replace(data, train=data.validation, augmentation=Augmentation(crop=0, flip=False))
    with evaluating(network):
        environment = BackboneEnvironment(network, as_met, generator, run.device, "float32")
        images = torch.randperm(environment.n_images, generator=generator)[:SETTLED_ON]

        def taken() -> Tensor:
            played = (
                roll_out(network.decision, environment.start(batch), 0.0, generator)
                for batch in images.split(BATCH_SIZE)
            )
            return torch.cat([each.actions for each in played])

        penalty = budget.settle(network.decision, taken, -learned.p, price)
    passed = learned.backbone_images + environment.backbone_images
    return Learned(learned.alpha, 0.0 - penalty, passed)


def _generator(run: Run, phase: int) -> torch.Generator:
    """Of a phase's batches, augmentation and exploration; on the CPU: the same on every device."""
    return torch.Generator().manual_seed(1000 * run.seed + phase)


def _budget_and_price(
    network: Deciding, data: Splits, options: QLearning
) -> tuple[Budget | None, Tensor]:
    cost, share = options.costs(network, data), options.keep_multiplications
    n_steps = len(network.decision.inputs)
    price = cost.prices() if options.price == "multiplications" else torch.ones(n_steps)
    return None if share is None else Budget(cost, share), price


def tabulates(network: Deciding, data: Splits, options: QLearning) -> bool:
    """Whether a table of all combinations is small; for td, also the shorter way."""
    if n_combinations(network.decision) > MOST_COMBINATIONS:
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
    start: Start | None = None,
) -> Learned:
    """Learns Q in `environment`, wherever its episodes come from.

    Args:
        generator: on the CPU.
        price: what p is multiplied by at each step, (T,); None for 1.
        budget: what p is found for; None where it is given, or the default.
        start: where learning for a budget begins; None for the least penalty.
        report: gets alpha, then some ten times q_step, q_loss and mean_return (the means since the
            last time, alpha and p included), p, penalty_in_cross_entropy and epsilon.

    Raises:
        ValueError: if alpha is to be set, and the mean loss of random actions is 0 or not finite.
        DivergedError: if the errors of Q are not finite.
    """
    alpha = prepare(decision, environment, options, generator)
    report({"alpha": alpha})
    frozen = copy.deepcopy(decision)  # the target network, where there is one

    def learnt(step: int, images: Tensor, penalties: Tensor) -> Step:
        epsilon, episodes = options.epsilon_at(step), environment.start(images)
        beginning = episodes.fork()
        played = roll_out(decision, episodes, epsilon, generator)
        reward = rewards(played.actions, episodes.losses, penalties, alpha)
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
        return Step(
            loss, played.values.argmax(dim=2), reward.sum(dim=1).mean(), {"epsilon": epsilon}
        )

    p = optimised(
        decision, learnt, environment.n_images, environment.device, alpha, options, generator,
        report, price, budget, start,
    )  # fmt: skip
    return Learned(alpha, p, environment.backbone_images)


@dataclass(frozen=True)
class Step:
    """What a step of learning goes by."""

    loss: Tensor
    best: Tensor
    """The actions that the decision network thinks best, (n, T)."""
    mean_return: Tensor
    figures: Mapping[str, float] = field(default_factory=dict)
    """To be reported, too."""


class Optimisation(Protocol):
    """Options of the optimisation, as `QLearning` has them."""

    @property
    def p(self) -> float | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def q_learning_rate(self) -> float: ...
    @property
    def q_weight_decay(self) -> float: ...


def optimised(
    decision: DecisionNetwork,
    learnt: Callable[[int, Tensor, Tensor], Step],
    n_images: int,
    device: torch.device,
    alpha: float,
    options: Optimisation,
    generator: torch.Generator,
    report: Report = ignore,
    price: Tensor | None = None,
    budget: Budget | None = None,
    start: Start | None = None,
) -> float:
    """Optimises a decision network in place; returns p, as it was given or came to.

    Args:
        learnt: what a step learns, of its number, images' numbers (n,) and what an action beyond
            the first brings at each step, (T,), <= 0.
        others: as for `learn`.
    """
    decision.offsets.zero_()  # what a budget moved before: the penalty begins anew
    price = torch.ones(len(decision.inputs)) if price is None else price
    price = price.to(device)
    given = DEFAULT_P if options.p is None else options.p
    first = -given if budget is None else LEAST
    if start is not None:
        first = start.begin(decision, alpha, price)
    penalty = torch.tensor(first, dtype=torch.float64, device=device)
    biases: dict[str, Any] = {"params": [b for b in decision.parameters() if b.ndim == 1]}
    weights: dict[str, Any] = {"params": [w for w in decision.parameters() if w.ndim > 1]}
    weights["weight_decay"] = options.q_weight_decay
    optimizer = torch.optim.AdamW([weights, biases], weight_decay=0.0, fused=True)
    report_every = math.ceil(options.steps / REPORTS)
    losses, returns = [], []
    drawn = batches(n_images, options.batch_size, generator)
    for step, images in zip(range(options.steps), drawn, strict=False):
        now = learnt(step, images, -penalty * price)
        for group in optimizer.param_groups:
            group["lr"] = options.q_learning_rate * (1 - step / options.steps)
        optimizer.zero_grad()
        now.loss.backward()
        optimizer.step()
        if budget is not None:
            penalty = budget.adjusted(penalty, now.best, step / options.steps)
        losses.append(now.loss.detach())
        returns.append(now.mean_return)
        if (step + 1) % report_every == 0 or step + 1 == options.steps:
            recent, mean_return = (torch.stack(each).mean().item() for each in (losses, returns))
            if not math.isfinite(recent):
                raise DivergedError(
                    f"Q-learning diverged before step {step + 1} of {options.steps}: its loss is "
                    f"{recent}. Try a q_learning_rate well below {options.q_learning_rate:g}."
                )
            figures = {"q_loss": recent, "mean_return": mean_return, **now.figures}
            prices = {"p": -penalty.item(), "penalty_in_cross_entropy": penalty.item() / alpha}
            report({"q_step": step + 1, **figures, **prices})
            losses, returns = [], []
    optimizer.zero_grad()  # nothing is left behind but weights
    return -penalty.item()


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
    features, losses = [], []
    for batch in images.split(options.batch_size):
        episodes = environment.start(batch)
        features.append(roll_out(decision, episodes, 1.0, generator).features)
        losses.append(episodes.losses)
    for step, examples in enumerate(zip(*features, strict=True)):
        decision.standardise(step, torch.cat(examples))
    if options.alpha is not None:
        return options.alpha
    mean = torch.cat(losses).mean().item()
    if not 0 < mean < math.inf:
        raise ValueError(
            f"alpha makes the mean loss under random actions 1, but that loss is {mean:g}. "
            "Give alpha itself."
        )
    return 1 / mean
