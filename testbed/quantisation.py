"""Uniform quantisation: values on a grid between a least and a greatest one.

A layer whose inputs are quantised has an `input_quantiser` of its own, which its forward pre-hook
calls: so the layer stays what it is, and what comes back from a file is the same network.
"""

from typing import Any

import torch
from torch import Tensor, nn


def quantised(values: Tensor, low: Tensor, high: Tensor, bits: Tensor) -> Tensor:
    """The nearest of 2^bits values from `low` to `high`, which are a step apart; values beyond are
    at the end.

    Source: the min-max quantiser of Nikolic et al. 2020, arXiv 2002.03090.
    """
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(values.dtype).tiny)
    return low + step * ((values.clamp(low, high) - low) / step).round()


class InputQuantiser(nn.Module):
    """Quantises what a layer reads, between ends that are kept."""

    low: Tensor
    high: Tensor
    bits: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, start in (("low", 0.0), ("high", 1.0), ("bits", 32.0)):
            self.register_buffer(name, torch.tensor(start))

    def forward(self, values: Tensor) -> Tensor:
        return quantised(values.float(), self.low, self.high, self.bits)


def quantise_inputs(layer: nn.Module, quantiser: nn.Module) -> None:
    """Has `quantiser` look at all that `layer` reads."""
    layer.add_module("input_quantiser", quantiser)
    layer.register_forward_pre_hook(_read_quantised)


def _read_quantised(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *others = inputs
    return layer.get_submodule("input_quantiser")(first), *others
