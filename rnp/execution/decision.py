"""Decision network: looks at what reaches a conv and says how much of the conv to compute.

Lin et al. 2017, section 3.2: an encoder for each layer takes the pooled feature maps to one length,
a recurrent cell carries on what was seen in the layers before, a decoder that all layers share
gives a Q-value for each action. Q-values have no bound: all rewards are negative.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from testbed import compiled

PreparedStep = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Features and state to Q-values and next state (see `DecisionNetwork.forward`)."""


class Run(Protocol):
    """Where decisions are made: images on their way through a backbone, or through a table."""

    def observe(self) -> Tensor | None:
        """Features of the next step's states, (n, C) float32; None once there are no more."""
        ...

    def act(self, actions: Tensor) -> None:
        """Takes an action for each image, (n,) int64 from 0."""
        ...


@dataclass(frozen=True)
class Decisions:
    """What was decided in a run of n images and T steps, and from what."""

    features: list[Tensor]
    """Of each step, (n, C)."""
    states: list[Tensor]
    """The recurrent state after each step, (n, hidden)."""
    values: Tensor
    """Q of all actions, (n, T, n_actions)."""
    actions: Tensor
    """Those taken, (n, T) int64."""


def greedy(values: Tensor) -> Tensor:
    """The best action of each image, (n,) int64, by its Q-values (n, n_actions)."""
    return values.argmax(dim=1)


def decisions(
    decide: Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    run: Run,
    choose: Callable[[Tensor], Tensor] = greedy,
    *,
    step: int = 0,
    state: Tensor | None = None,
) -> Decisions:
    """Observes, decides and acts, at least once, to the end of a run: the one decision loop.

    Args:
        decide: a decision network, or its `fixed`.
        choose: makes actions of Q-values, which are given to it without gradients.
        step, state: where the run stands.
    """
    features, states, values = [], [], []
    actions: list[Tensor] = []
    while (seen := run.observe()) is not None:
        q, state = decide(step + len(actions), seen, state)
        action = choose(q.detach())
        run.act(action)
        features.append(seen)
        states.append(state)
        values.append(q)
        actions.append(action)
    return Decisions(features, states, torch.stack(values, dim=1), torch.stack(actions, dim=1))


class DecisionNetwork(nn.Module):
    """Encoders, a GRU cell that steps across the layers (its work is counted), a decoder."""

    offsets: Tensor
    """(T, n_actions), added to each step's Q-values: by what prices moved after the learning."""
    later_buffers = ("offsets",)  # which networks on disk may lack: see `load_network`

    def __init__(
        self, features: Sequence[int], n_actions: int, encoding: int = 64, hidden: int = 128
    ) -> None:
        """
        Args:
            features: input channels of each conv that is decided about, in the order they run.
            encoding: length of every layer's encoding.
            hidden: length of the recurrent state.
        """
        super().__init__()
        self.inputs = tuple(features)
        self.encoders = nn.ModuleList(nn.Linear(n, encoding) for n in features)
        self.cell = nn.GRUCell(encoding, hidden)
        self.decoder = nn.Linear(hidden, n_actions)
        for step, n in enumerate(features):
            self.register_buffer(f"mean{step}", torch.zeros(n))
            self.register_buffer(f"deviation{step}", torch.ones(n))
        self.register_buffer("offsets", torch.zeros(len(features), n_actions))

    @property
    def n_actions(self) -> int:
        """Of every step."""
        return self.decoder.out_features

    def multiplications(self, step: int) -> int:
        """Of a step, for one image."""
        layers = (self.encoders[step], self.cell, self.decoder)
        return sum(w.numel() for layer in layers for w in layer.parameters() if w.ndim > 1)

    def standardise(self, step: int, features: Tensor) -> None:
        """Sets what the features of a step are shifted and divided by, from examples (n, C).

        A feature that is the same in all examples is only shifted.
        """
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        self.get_buffer(f"mean{step}").copy_(mean)
        self.get_buffer(f"deviation{step}").copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def favour_all(self) -> None:
        """Makes a network that has learnt nothing yet take the last action for nearly all images.

        First Q-values vary by far less than the third that actions now lie apart; returns of random
        actions, as alpha scales them, by about as much.
        """
        with torch.no_grad():
            self.decoder.bias.copy_(torch.linspace((1 - self.n_actions) / 3, 0, self.n_actions))

    def forward(
        self,
        step: int,
        features: Tensor,
        state: Tensor | None = None,
        prepared: PreparedStep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Q-values of one step and the state that the next step starts from.

        Args:
            features: (n, C) pooled inputs of the step's conv.
            state: (n, hidden) from the step before; None at the first.
            prepared: what `prepare` made of this step, to be run instead.

        Returns:
            (n, n_actions) and (n, hidden).
        """
        if prepared is not None:
            return prepared(features, state)
        mean, deviation = self.get_buffer(f"mean{step}"), self.get_buffer(f"deviation{step}")
        standardised = ((features - mean) / deviation).to(self.decoder.weight.dtype)
        state = self.cell(self.encoders[step](standardised).relu(), state)
        return self.decoder(state) + self.offsets[step], state

    def fixed(self, step: int, features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        """As `forward`, without gradients and in the weights' precision, whatever surrounds it."""
        device = features.device.type
        surrounded = torch.is_autocast_enabled(device)  # to leave autocast takes microseconds
        with (
            torch.no_grad(),
            torch.autocast(device, enabled=False) if surrounded else nullcontext(),
        ):
            result: tuple[Tensor, Tensor] = self(step, features, *others)
        return result

    def always(self, action: int) -> Self:
        """The same network with one action for all images and steps, the work for it included."""
        fixed = copy.deepcopy(self)
        with torch.no_grad():
            for each in (fixed.decoder.weight, fixed.decoder.bias, fixed.offsets):
                each.zero_()
            fixed.decoder.bias[action] = 1
        return fixed

    def prepare(self, step: int) -> PreparedStep | None:
        """The step in compiled code, without gradients, for the weights as they are.

        None where that is not built, or not for the weights' device and precision.
        """
        operators = compiled.operators()
        cell, encoder = self.cell, cast(nn.Linear, self.encoders[step])
        weights: list[Tensor] = [
            self.get_buffer(f"mean{step}"), self.get_buffer(f"deviation{step}"),
            encoder.weight, encoder.bias,
            cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh,
            self.decoder.weight, self.decoder.bias + self.offsets[step],
        ]  # fmt: skip
        if operators is None or any(w.dtype is not torch.float32 or not w.is_cpu for w in weights):
            return None
        weights = [weight.detach().contiguous() for weight in weights]
        operation = operators.q_values.default
        start = torch.zeros(1, cell.hidden_size)

        def run(features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            before = start.expand(len(features), -1).contiguous() if state is None else state
            values, after = operation(features, before, *weights)
            return values, after

        return run
