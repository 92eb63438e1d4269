"""AutoPrune: Xiao, Wang, Rajasekaran 2019, "AutoPrune: automatic network pruning by regularizing
auxiliary parameters", NeurIPS.

Learns which weights or filters to keep while the network trains. Each weight has an auxiliary
parameter m, and the network runs with t = w 1{m > 0}. The weights learn from some of the training
images, m from the others, and all m are pushed down. What ends at or below zero is removed: with
`unit: weights` it is zero, with `unit: filters` channels are gone.

We had the paper's abstract and its reviews, so formulae are from there or ours. m gets the gradient
sgn(w) dL/dt h'(m), that of |w|, with h' the slope of a leaky ReLU or a softplus; the push is mu
h'(m). Where we differ from the paper, or do not know: a network that is trained already is
pruned, so m starts as |w|, and `pressure` gives mu in units that do not depend on the length of the
training. Weights and m learn in the same steps, each from its own images, by the same SGD, but m
without decay. A channel has one m, and what is masked is what reads it: then a masked channel is
one that is gone, its batch norm too. Its m starts as its rank by the sum of |w| over what reads it,
from 0 to 2 in even steps: the sums themselves lie so close together that a layer's channels would
all go at once. The gradient of it is summed over these weights, times their mean |w|. The first
half of the epochs learns m, the second what stays. All images together are those of the epochs, so
nothing is spent beside them. Every layer keeps its largest m.

Its output with `unit: filters` is a smaller network, which runs fewer multiplications; with `unit:
weights` it merely holds zeros, and a dense machine runs all its multiplications.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines.channels.channel_groups import NONE, ChannelGroup, Keep, Scope, channel_groups
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.weights.layer_weights import (
    bake,
    check_budget,
    check_epochs,
    held_at_zero,
    moves,
    weight_layers,
)
from testbed.checkpoint import Checkpoint
from testbed.cost import sparsity, weights_by_layer
from testbed.data import Images, Splits, normalise
from testbed.method import Run
from testbed.prediction import autocast, memory_format_for
from testbed.stratified import draw
from testbed.training import Penalty

EPOCHS = 2  # one to learn the masks, one for what stays
LEAK = 0.1  # slope of the leaky ReLU below zero: what is pruned can come back
STREAM = 3  # keeps the draw of the images apart from others

StraightThrough = Literal["leaky_relu", "softplus"]


class AutoPrune(BaseModel):
    """What is pruned, and how hard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pressure: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="How far m is pushed down in all, in means of a layer's m as it starts.",
    )
    unit: Literal["weights", "filters"] = Field(
        default="weights", description="Zeroes single weights, or removes channels."
    )
    mask_share: float = Field(
        default=0.2, gt=0, lt=1, description="Of the training images: those that m learns from."
    )
    straight_through: StraightThrough = Field(
        default="leaky_relu", description="Whose slope stands in for that of the step at m = 0."
    )
    scope: Scope = "inside_blocks"
    keep: Keep = ()

    @model_validator(mode="after")
    def _affordable(self, info: ValidationInfo) -> "AutoPrune":
        check_budget("autoprune", info, EPOCHS)
        return self

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        weight_layers(dense)
        if self.unit == "filters":
            self._groups(dense, example_images(data, torch.device("cpu")))

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A sparser or smaller copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the masks are learnt, if the run's folder holds a checkpoint.

        Raises:
            ValueError: if nothing can be pruned, there are fewer than two epochs to fine-tune, or,
                after the masks were learnt, if they remove nothing.
        """
        network = copy.deepcopy(model).to(run.device)
        weight_layers(network)
        check_epochs("autoprune", run.fine_tuning.epochs, EPOCHS)
        checkpoint = Checkpoint(self, model, data, run)
        if checkpoint.load(network) < 0:
            learn = self._without_weights if self.unit == "weights" else self._without_filters
            network = learn(network, data, run)
            checkpoint.save(0, network)
        weights = weights_by_layer(network)
        with held_at_zero(weights, {name: weight == 0 for name, weight in weights.items()}):
            run.fine_tune(network, data)
        return network

    def _without_weights(self, network: nn.Module, data: Splits, run: Run) -> nn.Module:
        layers = weight_layers(network)
        gates = {}
        for name, layer in layers.items():
            weight = layer.get_parameter("weight")
            gates[name] = Gate(weight.detach().abs().flatten(), self.straight_through)
            places = torch.arange(weight.numel(), device=weight.device).view_as(weight)
            parametrize.register_parametrization(layer, "weight", Masked(gates[name], places))
        self._learn(network, gates, data, run)
        bake(layers)
        run.report({"sparsity": sparsity(network)})
        return network

    def _without_filters(self, network: nn.Module, data: Splits, run: Run) -> nn.Module:
        example = example_images(data, run.device)
        groups = channel_groups(network, example, scope=self.scope, keep=self.keep)
        gates: dict[str, Gate] = {}
        readers: dict[str, nn.Module] = {}
        for name, group in self._groups(network, example).items():
            norms, mean = norms_of_readers(network, group)
            gates[name] = Gate(even_steps(norms), self.straight_through)
            for reader, read in group.readers.items():
                readers[reader] = layer = network.get_submodule(reader)
                channels = torch.from_numpy(read.channels).to(run.device)
                shape = [1, -1, *[1] * (layer.weight.ndim - 2)]  # type: ignore[operator]
                first = reader == next(iter(group.readers))
                masked = Masked(gates[name], channels.view(shape), mean, owner=first)
                parametrize.register_parametrization(layer, "weight", masked)
        self._learn(network, gates, data, run)
        for layer in readers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        removed = {name: (~gate.kept).nonzero().flatten().tolist() for name, gate in gates.items()}
        kept = sum(int(gate.kept.sum()) for gate in gates.values())
        channels_before = sum(len(gate.m) for gate in gates.values())
        run.report({"channels_kept": kept / channels_before})
        return remove_channels(network, example, groups, removed)

    def _groups(self, network: nn.Module, example: Tensor) -> dict[str, ChannelGroup]:
        """The groups whose readers' weights can be masked.

        Raises:
            ValueError: if there is none.
        """
        groups = channel_groups(network, example, scope=self.scope, keep=self.keep)
        found = {name: group for name, group in groups.items() if _maskable(network, group)}
        if not found:
            raise ValueError(
                "autoprune masks channels in the weights that read them, and none of the layers "
                f"that write channels, {', '.join(groups)}, is read by plain convs and linear "
                "layers alone. Ask for unit: weights."
            )
        return found

    def _learn(
        self, network: nn.Module, gates: Mapping[str, "Gate"], data: Splits, run: Run
    ) -> None:
        """Fine-tunes for half of the epochs; the gates are in the network meanwhile.

        Raises:
            ValueError: if they remove nothing in the end.
        """
        epochs = run.fine_tuning.epochs // 2
        mask_images, others = _divided(data, self.mask_share, run.seed)
        settings = run.fine_tuning.model_copy(update={"epochs": epochs})
        steps = moves(settings, len(others.train))
        push = self.pressure / steps.sum().item()
        n_images = -(-len(mask_images) * epochs // len(steps))
        penalty = _mask_loss(mask_images, n_images, push, gates, others, network, run)
        run.fine_tune(network, others, epochs, judged=False, penalty=penalty)
        for gate in gates.values():
            gate.keep_one()
        if all(gate.kept.all() for gate in gates.values()):
            raise ValueError(
                f"Nothing was removed: with pressure {self.pressure:g} no m fell to zero. Raise "
                "pressure: at 1 and with no gradient of the data, a mean one just does."
            )


class Gate(nn.Module):
    """The auxiliary parameters of one layer's weights, or of a group's channels."""

    def __init__(self, start: Tensor, straight_through: StraightThrough) -> None:
        """`start`: (n,) above zero, but for weights that are zero already."""
        super().__init__()
        self.m = nn.Parameter(start.clone())  # of one dimension: the optimiser does not decay it
        self.scale = max(start.mean().item(), torch.finfo(start.dtype).tiny)
        self.straight_through = straight_through
        self.learns = False

    @property
    def kept(self) -> Tensor:
        """(n,) bool."""
        return self.m.detach() > 0

    @torch.no_grad()
    def keep_one(self) -> None:
        """Has the largest m stay, at the least value there is."""
        largest = self.m.argmax()
        self.m[largest] = self.m[largest].clamp(min=torch.finfo(self.m.dtype).tiny)

    def h(self) -> Tensor:
        """(n,): what the push is the slope of, in units of m."""
        if self.straight_through == "leaky_relu":
            return F.leaky_relu(self.m, LEAK)
        return self.scale * F.softplus(self.m / self.scale)

    def slope(self) -> Tensor:
        """(n,): h'(m)."""
        m = self.m.detach()
        if self.straight_through == "leaky_relu":
            return torch.where(m > 0, 1.0, LEAK)
        return (m / self.scale).sigmoid()


class Masked(nn.Module):
    """t = w 1{m > 0}: of w while weights learn, of m while the gate does."""

    places: Tensor

    def __init__(self, gate: Gate, places: Tensor, unit: float = 1.0, owner: bool = True) -> None:
        """
        Args:
            places: int64, of each weight's m, of a shape that broadcasts to it; or `NONE`.
            unit: how much of |w| a unit of m stands for.
            owner: whether the gate is a part of this module; else it is of another one.
        """
        super().__init__()
        if owner:
            self.gate = gate
        self._gate = [gate]
        self.unit = unit
        self.register_buffer("places", places, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        (gate,) = self._gate
        gated = self.places != NONE
        mask = ~gated | gate.kept[self.places]
        if not gate.learns:
            return weight * mask
        slope = self.unit * gate.slope()
        return _StraightThrough.apply(weight.detach(), mask, gate.m, slope, self.places)


class _StraightThrough(torch.autograd.Function):
    """w 1{m > 0}, whose gradient of m is sgn(w) dL/dt h'(m), summed over the weights of each m."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, mask: Tensor, m: Tensor, slope: Tensor, places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, slope, places)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, slope, places = ctx.saved_tensors
        each = (weight.sign() * gradient).flatten()
        owner = places.expand_as(weight).flatten()
        gated = owner != NONE
        summed = torch.zeros_like(slope).index_add(0, owner[gated], each[gated])
        return None, None, summed * slope, None, None


def _mask_loss(
    images: Images,
    n: int,
    push: float,
    gates: Mapping[str, Gate],
    data: Splits,
    network: nn.Module,
    run: Run,
) -> Penalty:
    """What m learns from at a step: the loss on `n` of its images, and the push.

    Args:
        push: of a gate's mean m as it starts.
    """
    own = images.to(run.device)
    layout = memory_format_for(network, data, run.device)

    def penalty(network: nn.Module, _: float) -> Tensor:
        generator = torch.default_generator  # which training seeds, and keeps with a checkpoint
        batch = own.select(torch.randint(len(own), (n,), generator=generator).to(run.device))
        pixels = data.augmented(batch, generator)
        inputs = normalise(pixels, data.mean, data.std, memory_format=layout)
        with _learning(gates), autocast(run.fine_tuning.precision, run.device):
            logits = network(inputs)
        loss = F.cross_entropy(logits.float(), batch.labels)
        pushed: Tensor = sum(
            (push * gate.scale * gate.h().sum() for gate in gates.values()), loss.new_zeros(())
        )
        return loss + pushed

    return penalty


@contextmanager
def _learning(gates: Mapping[str, Gate]) -> Iterator[None]:
    for gate in gates.values():
        gate.learns = True
    try:
        yield
    finally:
        for gate in gates.values():
            gate.learns = False


def _divided(data: Splits, share: float, seed: int) -> tuple[Images, Splits]:
    """The training images that m learns from, and the data with the others."""
    labels = data.train.labels.cpu().numpy()
    n = round(share * len(labels))
    if not 2 <= n <= len(labels) - 2:
        raise ValueError(
            f"mask_share {share:g} takes {n} of {len(labels)} training images; expected two at "
            "least, and two left for the weights."
        )
    mask = torch.from_numpy(draw(labels, n, np.random.default_rng([STREAM, seed])))
    own, others = (
        data.train.select(part.nonzero().flatten().to(data.train.labels.device))
        for part in (mask, ~mask)
    )
    return own, replace(data, train=others)


def even_steps(norms: Tensor) -> Tensor:
    """(n,): the rank of each, in even steps between 0 and 2, so 1 in the mean."""
    return 2 * (norms.argsort(stable=True).argsort() + 1) / (len(norms) + 1)


def norms_of_readers(network: nn.Module, group: ChannelGroup) -> tuple[Tensor, float]:
    """(channels,): the sum of the absolute weights that read each channel of a group; and their
    mean over all these weights."""
    norms, n_weights = torch.zeros(group.channels), 0
    for name, read in group.readers.items():
        weight = network.get_submodule(name).get_parameter("weight").detach().abs()
        channels = torch.from_numpy(read.channels)
        inside = channels != NONE
        each = weight.transpose(0, 1).flatten(1).sum(dim=1).cpu()
        norms.index_add_(0, channels[inside], each[inside])
        n_weights += int(inside.sum()) * (weight.numel() // len(channels))
    return norms.to(weight.device), norms.sum().item() / n_weights


def _maskable(network: nn.Module, group: ChannelGroup) -> bool:
    """Whether the inputs of all its readers are the columns of a conv's or linear layer's weight.

    Not those of grouped convs, where a column is read by several groups.
    """
    layers = weight_layers(network)
    return all(
        name in layers
        and read.parameter == f"{name}.weight"
        and read.dim == 1
        and len(read.channels) == layers[name].get_parameter("weight").shape[1]
        for name, read in group.readers.items()
    )
