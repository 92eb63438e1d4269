"""STR, soft threshold reparametrisation: Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade,
Farhadi 2020, "Soft threshold weight reparameterization for learnable sparsity", ICML, arXiv
2002.03231.

Learns one threshold for each conv and linear layer while the network trains: its weights are
W' = sign(W) relu(|W| - g(s)), with g the sigmoid. Weights below the threshold are zero, larger ones
are shifted by it. What comes back holds W' itself. Biases and norms are left alone.

Where we differ from the paper: `sparsity` is asked for. There it is what comes of the decay of s
and of where s starts, for which the authors try whole trainings. Here the decay is chosen anew at
every step, as the one that takes the thresholds to that sparsity in time, with the weights as they
are. The paper starts at s = -3200 or less, which never prunes in a training as short as
fine-tuning; here s starts where the weights' own decay takes it to -6, where the sigmoid begins to
be felt, half-way. Thresholds are learnt in the first half of the epochs alone. What is missing then
is made up by scaling every s alike (`learned_sparsity` is before that), W' is put in the place of
W, and in the second half its zeros stay: short trainings end with batch norms that lag behind
moving thresholds else. A layer that would lose all keeps its largest weight.

Its output merely holds zeros: a dense machine runs all its multiplications.
"""

import copy
import math
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines.weights.layer_weights import (
    bake,
    check_budget,
    check_epochs,
    held_at_zero,
    moved,
    moves,
    n_zeros,
    originals,
    weight_layers,
)
from testbed.checkpoint import Checkpoint
from testbed.cost import sparsity, weights_by_layer
from testbed.data import Splits
from testbed.method import Run

FELT = -6.0  # where the sigmoid is 0.0025, about the smallest weights that matter
REACHED = 0.7  # of the learning: when the sparsity is to be there
LOOKED_AHEAD = 0.2  # of the learning: in which it is put right from then on
EPOCHS = 2  # one to learn the thresholds, one with zeros that stay
LARGEST = 1 - 1e-6  # below 1, since a threshold is


class STR(BaseModel):
    """How many weights are to be zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: float = Field(
        default=0.8, gt=0, lt=1, description="Share of the conv and linear weights to be zero."
    )

    @model_validator(mode="after")
    def _affordable(self, info: ValidationInfo) -> "STR":
        check_budget("str", info, EPOCHS)
        return self

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        weight_layers(dense)  # refuses shared and computed weights
        n_zeros(self.sparsity, weights_by_layer(dense))

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A copy of `model` with zeros among its weights, fine-tuned (see `PruningMethod`).

        Resumes after the thresholds are learnt, if the run's folder holds a checkpoint.

        Raises:
            ValueError: if the network has no weight to zero, so many cannot be, or there are fewer
                than two epochs to fine-tune.
        """
        network = copy.deepcopy(model).to(run.device)
        weight_layers(network)  # refuses shared and computed weights
        zeros = n_zeros(self.sparsity, weights_by_layer(network))
        check_epochs("str", run.fine_tuning.epochs, EPOCHS)
        checkpoint = Checkpoint(self, model, data, run)
        if checkpoint.load(network) < 0:
            self._learn(network, zeros, data, run)
            checkpoint.save(0, network)
        weights = weights_by_layer(network)
        with held_at_zero(weights, {name: weight == 0 for name, weight in weights.items()}):
            run.fine_tune(network, data)
        return network

    def _learn(self, network: nn.Module, zeros: int, data: Splits, run: Run) -> None:
        """Fine-tunes with thresholds for half of the epochs, then leaves W' in `network`."""
        layers = weight_layers(network)
        epochs = run.fine_tuning.epochs // 2
        settings = run.fine_tuning.model_copy(update={"epochs": epochs})
        steps = moves(settings, len(data.train))
        start = first_s(settings.weight_decay, steps)
        for layer in layers.values():
            parametrize.register_parametrization(layer, "weight", SoftThreshold(start))
        thresholds = thresholds_of(layers)

        def penalty(network: nn.Module, progress: float) -> Tensor:
            soon = max(REACHED, progress + LOOKED_AHEAD)
            factor = factor_for(originals(layers), thresholds, zeros)
            decay = decay_for(factor, moved(steps, progress, soon))
            return decay / 2 * torch.stack([s**2 for s in thresholds.values()]).sum()

        run.fine_tune(network, data, epochs, judged=False, penalty=penalty)
        learned = sparsity(network)
        factor = factor_for(originals(layers), thresholds, zeros)
        with torch.no_grad():
            for s in thresholds.values():
                s.mul_(factor)
        bake(layers)
        run.report({"learned_sparsity": learned, "sparsity": sparsity(network)})


class SoftThreshold(nn.Module):
    """sign(W) relu(|W| - sigmoid(s)), with s learnt; the largest weight always stays."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(start))  # no dimension: the optimiser decays it not

    def forward(self, weight: Tensor) -> Tensor:
        size = weight.abs()
        threshold = torch.minimum(self.s.sigmoid(), LARGEST * size.detach().max())
        return weight.sign() * (size - threshold).relu()


def thresholds_of(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """s of each layer, by name."""
    return {
        name: layer.get_parameter("parametrizations.weight.0.s") for name, layer in layers.items()
    }


def first_s(decay: float, steps: Tensor) -> float:
    """Where s starts, so that this decay takes it to `FELT` after half of the training.

    With no gradient but its own decay's, |s| shrinks by exp(-decay sum(rates) / (1 - momentum)).

    Args:
        steps: of `moves`.
    """
    return FELT * math.exp(decay * moved(steps, 0.0, REACHED))


def decay_for(factor: float, left: float) -> float:
    """The decay that multiplies s by `factor` in a part of the training (see `moved`)."""
    return -math.log(max(factor, 1e-3)) / left if left > 0 else 0.0


@torch.no_grad()
def factor_for(
    weights: Mapping[str, Tensor], thresholds: Mapping[str, Tensor], n_zeros: int
) -> float:
    """What every s is to be multiplied by, for so many weights to lie below their thresholds.

    A weight does where |W| < sigmoid(f s), so where f < logit(|W|) / s, as s is negative.
    """
    ratios = []
    for name, weight in weights.items():
        size = weight.detach().float().abs().flatten()
        ratio = size.clamp(max=LARGEST).logit() / thresholds[name]
        ratio[size.argmax()] = -math.inf
        ratios.append(ratio)
    together = torch.cat(ratios)
    last = together.kthvalue(len(together) - n_zeros + 1).values.item()
    if last == math.inf:  # so many are zero anyway
        return 1e3
    staying = together.kthvalue(len(together) - n_zeros).values.item()
    return (last + staying) / 2 if math.isfinite(staying) else last - abs(last) * 1e-3
