"""New weights for a network that was trained, or whose layers were made smaller."""

from typing import Any

import torch
from torch import nn


def draw_anew(network: nn.Module, seed: int) -> None:
    """Draws all parameters of a network on the CPU from `seed`, and resets its batch norms.

    A module's own `reset_parameters` comes after its children's, so that it has the last word.
    Parameters of a module without one are shuffled, each within itself: they keep their scale and
    lose what was learnt.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        modules: list[Any] = list(network.modules())
        for module in reversed(modules):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
            else:
                for parameter in module.parameters(recurse=False):
                    order = torch.randperm(parameter.numel())
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
