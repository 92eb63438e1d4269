"""Q-learning of the decision network: Lin et al. 2017, section 3.3.

Per image, action a (from 0) at a conv is rewarded with `a * p`, the last one also with
`-alpha * L`, L being that image's own cross-entropy. The loss is the squared difference of
`Q(s_t, a_t)` and `r_t + gamma * max_a Q(s_{t+1}, a)`, with nothing to follow after the last conv.

Where we differ: the paper does not say how Q is optimised, explored and scaled; `QLearning` has
what we chose, and why. Gradients flow back through the recurrent state to the convs before; targets
are constants. alpha is set from the losses of random actions, before a learning phase begins.
Besides one-step Q-learning there is regression on the exact cost-to-go, where a table has the loss
of every combination of prefixes.
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rnp.channel_flow import ChannelFlow
from rnp.decision import DecisionNetwork
from rnp.environment import BackboneEnvironment, Environment, batches
from rnp.loss_table import MOST_COMBINATIONS, LossTable, n_combinations, passes_per_image
from rnp.play import play, q_values
from rnp.runtime import RuntimeNetwork
from rnp.targets import exact_returns, q_loss, rewards, td_targets
from testbed.data import Splits
from testbed.machine import Precision
from testbed.operations import counting_multiplications
from testbed.prediction import evaluating
from testbed.training import DivergedError, Report, ignore

EXAMPLES = 4096  # images under random actions, at most, that alpha and the features' scale are from
REPORTS = 10  # in a learning phase

Probability = Annotated[float, Field(ge=0, le=1)]


class QLearning(BaseModel):
    """What the paper leaves open, with what was found to work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p: float = Field(
        default=-0.1,
        le=0,
        allow_inf_nan=False,
        description="Penalty of every channel group beyond the first, as in the paper. Only "
        "|p| / alpha matters: what a group must save in cross-entropy.",
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
        description="Of AdamW, biases excepted. Above 0 (1 is much) images are told apart only "
        "where many show that it pays, not where single ones' losses were learnt by heart.",
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
        description="Of the error of Q. squared: its minimum is the mean return; huber cares less "
        "for the few images of great loss, which decide where groups are worth their price.",
    )
    target_network: int = Field(
        default=0,
        ge=0,
        description="Steps between copies of the network that gives td's targets. 0: none, as "
        "episodes of a few steps did not need it.",
    )
    learner: Literal["td", "cost_to_go"] = Field(
        default="td",
        description="td: the paper's, for any network. cost_to_go: regression on exact returns, "
        "for networks of few decisions; better by up to half a point.",
    )

    def epsilon_at(self, step: int) -> float:
        """The share of random actions at a step, from 0."""
        first, last = self.epsilon
        return first + (last - first) * min(1.0, step / (self.exploration * self.steps))

    def check(self, flow: ChannelFlow) -> None:
        """Refuses what cannot be learnt, before anything is trained.

        Raises:
            ValueError: if the cost-to-go is asked for, of more combinations than a table takes.
        """
        if self.learner == "cost_to_go" and n_combinations(flow) > MOST_COMBINATIONS:
            raise ValueError(
                f"learner: cost_to_go needs the loss of every combination of prefixes, at most "
                f"{MOST_COMBINATIONS}, but {len(flow.convs)} convs of {flow.groups} groups have "
                f"{n_combinations(flow)}. Use learner: td, or fewer groups."
            )


@dataclass(frozen=True)
class Learned:
    """What a learning phase came to."""

    alpha: float
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
    options.check(network.flow)
    network.to(device)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    with evaluating(network):
        environment: Environment
        if _tabulates(network, data, options):
            environment = LossTable(network, data, generator, device, precision)
        else:
            environment = BackboneEnvironment(network, data, generator, device, precision)
        price = prices(network, data) if options.price == "multiplications" else None
        return learn(network.decision, environment, options, generator, report, price)


def prices(network: RuntimeNetwork, data: Splits) -> Tensor:
    """What a group of each conv adds to the multiplications, (T,), relative to the mean conv's.

    With everything else computed: the conv itself, and the layers that read it.
    """
    device = next(network.parameters()).device
    black = torch.zeros(1, *data.input_shape, device=device)
    everything = torch.full((1, len(network.flow.convs)), network.flow.groups - 1, device=device)
    with torch.no_grad(), counting_multiplications(network) as by_layer:
        network.masked(black, everything)
    added = torch.tensor(
        [
            by_layer[conv.name] + sum(by_layer[reader] for reader in conv.readers)
            for conv in network.flow.convs
        ],
        dtype=torch.float32,
        device=device,
    )
    return added / added.mean()


def _tabulates(network: RuntimeNetwork, data: Splits, options: QLearning) -> bool:
    """Whether a table is needed, or is small and the shorter way."""
    if options.learner == "cost_to_go":
        return True
    if n_combinations(network.flow) > MOST_COMBINATIONS:
        return False
    in_table = passes_per_image(network, data) * len(data.train)
    return in_table <= options.steps * options.batch_size


def learn(
    decision: DecisionNetwork,
    environment: Environment,
    options: QLearning,
    generator: torch.Generator,
    report: Report = ignore,
    price: Tensor | None = None,
) -> Learned:
    """Learns Q in `environment`, wherever its episodes come from.

    Args:
        generator: on the CPU.
        price: what p is multiplied by at each step, (T,); None for 1.
        report: gets alpha and penalty_in_cross_entropy, then some ten times q_step, q_loss and
            mean_return (the means since the last time, alpha and p included) and epsilon.

    Raises:
        ValueError: if alpha is to be set, and the mean loss of random actions is 0 or not finite.
        DivergedError: if the errors of Q are not finite.
    """
    alpha = prepare(decision, environment, options, generator)
    penalties = options.p * (torch.ones(len(decision.inputs)) if price is None else price)
    penalties = penalties.to(environment.device)
    penalty = abs(options.p) / alpha
    report({"alpha": alpha, "penalty_in_cross_entropy": penalty})
    frozen = copy.deepcopy(decision)  # the target network, where there is one
    biases: dict[str, Any] = {"params": [b for b in decision.parameters() if b.ndim == 1]}
    weights: dict[str, Any] = {"params": [w for w in decision.parameters() if w.ndim > 1]}
    weights["weight_decay"] = options.q_weight_decay
    optimizer = torch.optim.AdamW([weights, biases], weight_decay=0.0, fused=True)
    report_every = math.ceil(options.steps / REPORTS)
    losses, returns = [], []
    drawn = batches(environment.n_images, options.batch_size, generator)
    for step, images in zip(range(options.steps), drawn, strict=False):
        epsilon = options.epsilon_at(step)
        episodes = environment.start(images)
        beginning = episodes.fork()
        played = play(decision, episodes, epsilon, generator)
        reward = rewards(played.actions, played.losses, penalties, alpha)
        if options.learner == "cost_to_go":
            targets = exact_returns(decision, beginning, played, penalties, alpha, options.gamma)
            loss = q_loss(played.values, targets, options.q_loss)
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
            report({"q_step": step + 1, **figures})
            losses, returns = [], []
    optimizer.zero_grad()  # nothing is left behind but weights
    return Learned(alpha, penalty, environment.backbone_images)


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
