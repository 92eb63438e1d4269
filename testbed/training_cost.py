"""Multiplications of an image's passes through a network that is being trained."""

import copy

import torch
from torch import nn

from testbed.cost import multiplications_by_layer
from testbed.operations import counting_multiplications

IMAGES = 2  # batch norm needs two, where maps are of one pixel


def forward_multiplications(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    device: torch.device,
    teacher: nn.Module | None = None,
) -> float:
    """Multiplications of an image's forward pass in training mode, with its teacher's.

    In that mode a network that skips computes all of its channels. The backward pass, which is
    left out, takes about twice as many.

    Args:
        network: left unchanged.
        teacher: in evaluation mode.

    Raises:
        UncountedOperationError: if an operation runs whose multiplications are not known.
    """
    copied = copy.deepcopy(network).to(device).train()  # batch norms take note of what they see
    black = torch.zeros(IMAGES, *input_shape, device=device)
    gpus = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(gpus),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        counting_multiplications(copied) as by_layer,
    ):
        copied(black)
    taught = 0 if teacher is None else multiplications_by_layer(teacher.to(device), black).total()
    return (by_layer.total() + taught) / IMAGES
