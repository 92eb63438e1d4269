"""Joint sparsity: Choi, El-Khamy, Lee 2018, "Compression of deep convolutional neural networks
under joint sparsity constraints", arXiv 1805.08303; 2019, "Jointly sparse convolutional neural
networks in dual spatial-Winograd domains", ICASSP, arXiv 1902.08192.

While the network trains, its small weights are pushed to zero, and so are the small ones of what a
Winograd convolution makes of them. Afterwards the smallest are zeroed in either domain, without
retraining. A weight is small if it is among the share `sparsity` of all layers' smallest; which are
is looked up at every step. The loss is L + e^zS R_S + e^zW R_W - aS zS - aW zW, with R the mean of
the squares of the small ones and z learnt: as R falls, the pressure a / R grows.

We knew the formulae from memory and from a patent's claims. Where we differ from the paper, or do
not know: z starts where it would stand still, at ln(a / R), as fine-tuning is short; a is not given
but follows from `pressure` and the training's length, one for each domain; e^z is bounded, so that
one step halves a weight at most. A layer keeps its largest weight. The paper's quantisation and
entropy coding, which only save storage, are left out. In the Winograd domain, 3x3 convs of stride 1
run as F(2x2, 3x3) with sixteen weights where nine were; other layers are pruned as they are.

Its output holds zeros, and no multiplication of a direct convolution is saved. What Winograd
convolutions save counts as `winograd_multiplications`, apart from the multiplications that run.
"""

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from torch import Tensor, nn

from baselines.weights.layer_weights import (
    check_budget,
    check_epochs,
    moves,
    n_zeros,
    weight_layers,
)
from testbed.cost import sparsity, weights_by_layer
from testbed.data import Splits
from testbed.method import Run
from testbed.winograd import EXPECTED, WinogradConv2d, takes_winograd, transformed

LOG_PRESSURES = "joint_sparsity_log_pressures"
Weights = Mapping[str, Tensor]


class JointSparsity(BaseModel):
    """How many weights are to be zero, in which domain, and how hard they are pushed there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: float = Field(
        default=0.7, gt=0, lt=1, description="Share of the weights to be zero, in each domain."
    )
    domain: Literal["winograd", "spatial"] = Field(
        default="winograd", description="In which the zeros are, and the 3x3 convs run."
    )
    pressure: float = Field(
        default=2.0,
        gt=0,
        allow_inf_nan=False,
        description="At 1, and with no gradient of the data, small weights just vanish in time.",
    )

    @model_validator(mode="after")
    def _affordable(self, info: ValidationInfo) -> "JointSparsity":
        check_budget("joint_sparsity", info, 1)
        return self

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        layers = weight_layers(dense)
        if not any(takes_winograd(layer) for layer in layers.values()):
            raise ValueError(
                f"joint_sparsity needs {EXPECTED}: this network has none among its {len(layers)} "
                "conv and linear layers. Take str or magnitude for it."
            )
        n_zeros(self.sparsity, weights_by_layer(dense))

    def skeleton(self, dense: nn.Module) -> nn.Module:
        """The network with the convs that run in the Winograd domain (see `Rebuilding`)."""
        network = copy.deepcopy(dense)
        if self.domain == "winograd":
            for name, layer in weight_layers(network).items():
                if takes_winograd(layer):
                    network.set_submodule(name, WinogradConv2d(layer))  # type: ignore[arg-type]
        return network

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A copy of `model` with zeros in one domain, fine-tuned before (see `PruningMethod`).

        Raises:
            ValueError: if the network has no conv that Winograd takes, no epoch is left to
                fine-tune, or so few or many weights cannot be zero.
        """
        self.check_network(model, data)
        check_epochs("joint_sparsity", run.fine_tuning.epochs, 1)
        network = copy.deepcopy(model).to(run.device)
        layers = weight_layers(network)
        steps = moves(run.fine_tuning, len(data.train))
        in_winograd = {name: layer for name, layer in layers.items() if takes_winograd(layer)}

        def both() -> list[dict[str, Tensor]]:
            """All weights, and those of the Winograd domain."""
            weights: dict[str, Tensor] = {
                name: layer.get_parameter("weight") for name, layer in layers.items()
            }
            return [weights, {name: transformed(weights[name]) for name in in_winograd}]

        with torch.no_grad():
            domains = [(self._small_squares(weights), count(weights)) for weights in both()]
        # With no other gradient R falls by 4 a / n for each unit that the steps move.
        alphas = [
            self.pressure * start.item() * n / (4 * steps.sum().item()) for start, n in domains
        ]
        begin = torch.tensor(
            [math.log(a / max(r.item(), 1e-30)) for a, (r, _) in zip(alphas, domains, strict=True)]
        )
        most = torch.tensor([math.log(n / (4 * steps.max().item())) for _, n in domains])
        begin, most = begin.to(run.device), most.to(run.device)
        alpha = torch.tensor(alphas, device=run.device)
        network.register_parameter(LOG_PRESSURES, nn.Parameter(torch.minimum(begin, most)))

        def penalty(network: nn.Module, _: float) -> Tensor:
            z = torch.minimum(network.get_parameter(LOG_PRESSURES), most)
            squares = torch.stack([self._small_squares(weights) for weights in both()])
            return (z.exp() * squares - alpha * z).sum()

        # It is not judged on its way, as the zeros come in the end.
        run.fine_tune(network, data, judged=False, penalty=penalty)
        del network._parameters[LOG_PRESSURES]
        pruned = self.skeleton(network)
        self._zero_small(pruned)
        run.report({"sparsity": sparsity(pruned), **self._in_winograd(pruned)})
        return pruned

    def _small_squares(self, weights: Weights) -> Tensor:
        """R: the mean over all weights of the squares of the small ones."""
        together = torch.cat([weight.flatten() for weight in weights.values()])
        size = together.detach().abs()
        threshold = size.kthvalue(max(1, round(self.sparsity * len(size)))).values
        return torch.where(size <= threshold, together, 0).square().mean()

    @torch.no_grad()
    def _zero_small(self, pruned: nn.Module) -> None:
        """Zeroes the smallest weights of each domain."""
        in_winograd = {
            name: module.weight
            for name, module in pruned.named_modules()
            if isinstance(module, WinogradConv2d)
        }
        others = {
            name: module.weight
            for name, module in pruned.named_modules()
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        }
        for weights in (in_winograd, others):
            if not weights:
                continue
            sizes = {name: weight.abs() for name, weight in weights.items()}
            for size in sizes.values():
                size.view(-1)[size.argmax()] = math.inf
            zeros = n_zeros(self.sparsity, weights)
            threshold = torch.cat([size.flatten() for size in sizes.values()]).kthvalue(zeros)
            for name, weight in weights.items():
                weight.masked_fill_(sizes[name] <= threshold.values, 0)

    def _in_winograd(self, pruned: nn.Module) -> dict[str, float]:
        """What is zero in the Winograd domain, where convs run there."""
        weights = [m.weight for m in pruned.modules() if isinstance(m, WinogradConv2d)]
        total = sum(weight.numel() for weight in weights)
        zeros = total - sum(int(weight.count_nonzero()) for weight in weights)
        return {"winograd_sparsity": zeros / total} if total else {}


def count(weights: Weights) -> int:
    """How many weights there are."""
    return sum(weight.numel() for weight in weights.values())
