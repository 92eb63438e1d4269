"""BitPruning: Nikolic, Ben Hacene, Bannon, Delmas Lascorz, Courbariaux, Bengio, Gripon, Moshovos
2020, "BitPruning: learning bitlengths for aggressive and accurate quantization", arXiv 2002.03090.

Learns how many bits the weights and the inputs of each conv and linear layer need, while the
network trains. Values lie on 2^n of them between the least and the greatest; between whole n, the
network runs with a mixture of both neighbours. All n are pushed down; in the end they are rounded
up, and the weights learn to live with it.

We knew the formulae from memory, so they are checked by their properties. Where we differ from the
paper, or do not know: `pressure` says how many bits the push alone would take off every length, so
that it does not depend on the length of the training; in the paper gamma is a factor of the loss.
The first half of the epochs learns the lengths, the second half trains with those rounded up. The
ends of a layer's inputs are those of the batch while training, and their running mean is kept for
evaluation, with the momentum of a batch norm. Lengths stay between 1 and 12 bits. Biases and norms
stay as they are, and so do inputs of a layer whose weight another module uses (an attention's).

Its output holds weights, and computes with inputs, of few bits: a dense machine runs all its
multiplications, and the quantisation beside.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines.weights.layer_weights import bake, check_budget, check_epochs, moves, weight_layers
from testbed.checkpoint import Checkpoint
from testbed.cost import count_multiplications
from testbed.data import Splits
from testbed.method import Run
from testbed.quantisation import InputQuantiser, quantise_inputs, quantised

EPOCHS = 2  # one to learn the lengths, one with those rounded up
FEWEST, MOST = 1.0, 12.0  # bits: at 0 the grid has no step, and float32 blurs finer ones
SLACK = 0.05  # bits: a length that the push holds at a whole number hovers about it
MOMENTUM = 0.1  # of the running ends of inputs, as of batch norms


class BitPruning(BaseModel):
    """How hard lengths are pushed down, and where from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pressure: float = Field(
        default=8.0,
        gt=0,
        allow_inf_nan=False,
        description="How many bits the push alone would take off every length.",
    )
    start_bits: float = Field(
        default=8.0, ge=2, le=MOST, description="Length that all weights and inputs start with."
    )
    weigh_by: Literal["layers", "footprint", "multiplications"] = Field(
        default="layers",
        description="Pushes all alike, or each as its share of the values or multiplications.",
    )

    @model_validator(mode="after")
    def _affordable(self, info: ValidationInfo) -> "BitPruning":
        check_budget("bit_pruning", info, EPOCHS)
        return self

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        weight_layers(dense)

    def skeleton(self, dense: nn.Module) -> nn.Module:
        """The network with quantisers of its layers' inputs (see `Rebuilding`)."""
        network = copy.deepcopy(dense)
        for layer in weight_layers(network).values():
            quantise_inputs(layer, InputQuantiser())
        return network

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A quantised copy of `model`, fine-tuned (see `PruningMethod`).

        Resumes after the lengths are learnt, if the run's folder holds a checkpoint.

        Raises:
            ValueError: if the network has no conv and no linear layer, there are fewer than two
                epochs to fine-tune, or no length fell.
        """
        network = copy.deepcopy(model).to(run.device)
        layers = weight_layers(network)
        check_epochs("bit_pruning", run.fine_tuning.epochs, EPOCHS)
        pushes = self._pushes(model, layers, data)
        for layer in layers.values():
            parametrize.register_parametrization(layer, "weight", Learnt(self.start_bits))
            quantise_inputs(layer, LearntOfInputs(self.start_bits))
        checkpoint = Checkpoint(self, model, data, run)
        if checkpoint.load(network) < 0:
            self._learn(network, layers, pushes, data, run)
            checkpoint.save(0, network)
        for length in lengths_of(layers).values():
            length.requires_grad_(False)
        run.fine_tune(network, data)
        for layer in layers.values():
            learnt = layer.get_submodule("input_quantiser")
            assert isinstance(learnt, LearntOfInputs)
            layer.add_module("input_quantiser", learnt.kept())
        bake(layers)
        return network

    def _learn(
        self,
        network: nn.Module,
        layers: Mapping[str, nn.Module],
        pushes: Mapping[str, float],
        data: Splits,
        run: Run,
    ) -> None:
        """Fine-tunes for half of the epochs with lengths that are learnt, and rounds them up."""
        epochs = run.fine_tuning.epochs // 2
        settings = run.fine_tuning.model_copy(update={"epochs": epochs})
        unit = self.pressure / moves(settings, len(data.train)).sum().item()
        lengths = lengths_of(layers)

        def penalty(network: nn.Module, _: float) -> Tensor:
            above = [pushes[name] * (n - FEWEST).relu() for name, n in lengths.items()]
            return unit * torch.stack(above).sum()

        run.fine_tune(network, data, epochs, judged=False, penalty=penalty)
        with torch.no_grad():
            learnt = torch.stack([n.clamp(FEWEST, MOST) for n in lengths.values()])
            for n in lengths.values():
                n.copy_((n.clamp(FEWEST, MOST) - SLACK).ceil())
        rounded = torch.stack([n.detach() for n in lengths.values()])
        if not (rounded < self.start_bits).any():
            raise ValueError(
                f"Nothing was removed: with pressure {self.pressure:g} no length fell from "
                f"{self.start_bits:g} bits. Raise pressure."
            )
        bits = {"learned_bits": learnt.mean().item(), "bits": rounded.mean().item()}
        run.report(bits)

    def _pushes(
        self, model: nn.Module, layers: Mapping[str, nn.Module], data: Splits
    ) -> dict[str, float]:
        """How hard each length is pushed, by the names of `lengths_of`; 1 in the mean."""
        if self.weigh_by == "layers":
            return dict.fromkeys((f"{name}.{of}" for name in layers for of in OF), 1.0)
        image = data.normalised(data.validation[:1])
        if self.weigh_by == "multiplications":
            cost = count_multiplications(model, image).per_layer
            ran = {name: float(cost[name].sum()) if name in cost else 0.0 for name in layers}
            shares = {f"{name}.{of}": ran[name] for name in layers for of in OF}
        else:
            inputs = _n_inputs(model, layers, image[:])
            weights = {
                name: layer.get_parameter("weight").numel() for name, layer in layers.items()
            }
            shares = {f"{name}.weights": float(weights[name]) for name in layers}
            shares |= {f"{name}.inputs": float(inputs[name]) for name in layers}
        mean = sum(shares.values()) / len(shares)
        return {name: share / mean for name, share in shares.items()}


OF = ("weights", "inputs")


class Learnt(nn.Module):
    """Values on a grid between their least and their greatest, of a length that is learnt."""

    def __init__(self, bits: float) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.tensor(bits))  # no dimension: it does not decay

    def forward(self, values: Tensor) -> Tensor:
        ends = values.detach().aminmax()
        return learnable(values.float(), ends.min, ends.max, self.length)


class LearntOfInputs(Learnt):
    """The same of what a layer reads; the ends of training are kept for evaluation."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: float) -> None:
        super().__init__(bits)
        for name in ("low", "high"):
            self.register_buffer(name, torch.tensor(torch.nan))

    def forward(self, values: Tensor) -> Tensor:
        values = values.float()
        least, greatest = values.detach().aminmax()
        if self.training:
            with torch.no_grad():
                for kept, now in ((self.low, least), (self.high, greatest)):
                    kept.copy_(torch.where(kept.isnan(), now, kept.lerp(now, MOMENTUM)))
        else:  # before any training, those of the batch
            least = torch.where(self.low.isnan(), least, self.low)
            greatest = torch.where(self.high.isnan(), greatest, self.high)
        return learnable(values, least, greatest, self.length)

    def kept(self) -> InputQuantiser:
        """The quantiser that is left when nothing is learnt any more."""
        quantiser = InputQuantiser().to(self.low.device)
        for name in ("low", "high"):
            quantiser.get_buffer(name).copy_(getattr(self, name))
        quantiser.bits.copy_(self.length.detach())
        return quantiser


def learnable(values: Tensor, low: Tensor, high: Tensor, length: Tensor) -> Tensor:
    """(1 - a) Q(V, b) + a Q(V, b + 1), of the length n = b + a, with b whole.

    The gradient of V is that of the result, but nothing beyond the ends; the one of n is the sum of
    dL/dQ (Q(V, b + 1) - Q(V, b)), that of the step above where n is whole.
    """
    result: Tensor = _Learnable.apply(values, low, high, length)
    return result


class _Learnable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor, length: Tensor) -> Tensor:
        bits = length.clamp(FEWEST, MOST)
        whole = bits.floor()
        fewer, more = (quantised(values, low, high, each) for each in (whole, whole + 1))
        ctx.save_for_backward(more - fewer, (values >= low) & (values <= high))
        # The one or the other exactly where n is whole.
        return torch.where(bits == whole, fewer, torch.lerp(fewer, more, bits - whole))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        difference, inside = ctx.saved_tensors
        return gradient * inside, None, None, (gradient * difference).sum()


def lengths_of(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The lengths of each layer's weights and inputs, as LAYER.weights and LAYER.inputs."""
    places = {"weights": "parametrizations.weight.0.length", "inputs": "input_quantiser.length"}
    return {
        f"{name}.{of}": layer.get_parameter(places[of])
        for name, layer in layers.items()
        for of in OF
    }


def _n_inputs(model: nn.Module, layers: Mapping[str, nn.Module], image: Tensor) -> dict[str, int]:
    """How many values each layer reads of one image; 0 where it is not called."""
    counts = dict.fromkeys(layers, 0)
    network = copy.deepcopy(model).cpu().eval()

    def counted(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] += inputs[0].numel()

        return hook

    for name in layers:
        network.get_submodule(name).register_forward_pre_hook(counted(name))
    with torch.no_grad():
        network(image)
    return counts
