"""Magnitude pruning: Han, Pool, Tran, Dally 2015, "Learning both weights and connections for
efficient neural networks", NIPS; as the pruning-methods report does it.

Zeroes the conv and linear weights whose absolute value is below `threshold` standard deviations,
after the training; then retrains with these weights held at zero, and repeats. Biases and norms are
left alone.

Where we differ from the paper: the deviation may be that of the whole network's weights, as in the
report. In later rounds it is taken over all weights, zeros included, as the report's algorithm 1
does: it falls as weights go, and later rounds take few more; over the surviving weights alone it
would rise and take most of them. A layer that would lose every weight keeps its largest one, as
every layer of a channel method keeps a channel: a search over thresholds then meets a poor network,
not an error.
Without `masked_update` zeroed weights may grow again while retraining (the report retrains its
other two methods so); the network is then pruned once more at the end, or no zero would be left.

Its output merely holds zeros: a dense machine runs all its multiplications.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from baselines.channels.rounds import Rounds, epochs_per_round
from baselines.weights.layer_weights import held_at_zero
from testbed.checkpoint import Checkpoint
from testbed.cost import sparsity, weights_by_layer
from testbed.data import Splits
from testbed.method import Run

Scope = Literal["global", "layer"]


class Magnitude(BaseModel):
    """Where the threshold lies, and how often weights are zeroed and the rest retrained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=1.0, gt=0, description="In standard deviations of weights.")
    scope: Scope = Field(
        default="global", description="Deviation of the whole network's weights, or each layer's."
    )
    rounds: Rounds = 1
    masked_update: bool = Field(
        default=True, description="Hold zeroed weights at zero while retraining."
    )

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A copy of `model` with zeros among its weights, retrained (see `PruningMethod`).

        Resumes after the last complete round, if the run's folder holds a checkpoint.

        Raises:
            ValueError: if there are more rounds than epochs, the network has no weights to zero, or
                none lies below the threshold.
        """
        epochs = epochs_per_round(self.rounds, run.fine_tuning.epochs)
        network = copy.deepcopy(model).to(run.device)
        checkpoint = Checkpoint(self, model, data, run)
        completed = max(0, checkpoint.load(network))
        weights = weights_by_layer(network)
        if not weights:
            raise ValueError("Nothing to prune: the network has no conv and no linear layer.")
        for number, n_epochs in enumerate(epochs[completed:], completed + 1):
            small = self._zero_small(weights)
            if not any(mask.any() for mask in small.values()):
                raise ValueError(
                    f"threshold {self.threshold:g} removes nothing: no weight lies below so many "
                    f"standard deviations of scope {self.scope!r}. Ask for a higher threshold."
                )
            before = sparsity(network)
            with held_at_zero(weights, small) if self.masked_update else nullcontext():
                run.fine_tune(network, data, n_epochs)
            run.report(
                {
                    "round": number,
                    "sparsity_before_finetuning": before,
                    "sparsity": sparsity(network),
                }
            )
            checkpoint.save(number, network)
        if not self.masked_update:
            self._zero_small(weights)
        return network

    @torch.no_grad()
    def _zero_small(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zeroes weights in place; returns where, as bool tensors of the weights' shapes."""
        small = small_weights(weights, self.threshold, self.scope)
        for name, weight in weights.items():
            weight.masked_fill_(small[name], 0)
        return small


def small_weights(
    weights: Mapping[str, Tensor], threshold: float, scope: Scope
) -> dict[str, Tensor]:
    """Which weights lie below `threshold` standard deviations, as bool tensors of their shapes.

    The largest weight of a layer never does.
    """
    together = torch.cat([weight.detach().flatten() for weight in weights.values()])
    overall = together.std(correction=0)
    small = {}
    for name, weight in weights.items():
        deviation = overall if scope == "global" else weight.detach().std(correction=0)
        size = weight.detach().abs()
        small[name] = (size < threshold * deviation) & (size < size.max())
    return small
