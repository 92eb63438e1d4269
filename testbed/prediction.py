"""What a network says of images, and how often it is right."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from testbed.data import Images, Splits, normalise
from testbed.machine import Precision, best_precision

MOST_VALUES = 2**24  # of the images of a batch: what networks compute of them takes far more

log = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    images: Images,
    data: Splits,
    *,
    device: torch.device,
    batch_size: int = 512,
    precision: Precision = "auto",
) -> float:
    """The share of `images` that `model` classifies right. Arguments as for `predict`."""
    logits = predict(model, images, data, device=device, batch_size=batch_size, precision=precision)
    return (logits.argmax(dim=1) == images.labels.cpu()).double().mean().item()


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Images,
    data: Splits,
    *,
    device: torch.device,
    batch_size: int = 512,
    precision: Precision = "auto",
) -> Tensor:
    """The logits of `images`, without augmentation: (n, classes) float32 on the CPU.

    `model` ends on `device`; its modules stay in training or eval mode, as each was.

    Args:
        images: uint8, normalised here with the mean and deviation of `data`'s training images.
        batch_size: at most; fewer where images are large.
    """
    model.to(device)
    logits = []
    with evaluating(model):
        layout = memory_format_for(model, data, device)
        for part in images.batches(min(batch_size, 1 + MOST_VALUES // prod(images.shape[1:]))):
            batch = normalise(part.pixels.to(device), data.mean, data.std, memory_format=layout)
            with autocast(precision, device):
                logits.append(model(batch).float())
    return torch.cat(logits).cpu()


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16 meanwhile, if that is the precision."""
    dtype = best_precision(device) if precision == "auto" else getattr(torch, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def memory_format_for(model: nn.Module, data: Splits, device: torch.device) -> torch.memory_format:
    """Channels last, unless the network cannot take it.

    Only the images need to lie so: what is computed from them follows, and weights are laid out
    anew for each product anyway.

    Raises:
        ValueError: if the network does not give logits of the data's classes.
    """
    black = torch.zeros(1, *data.input_shape, device=device)
    with torch.no_grad(), evaluating(model):
        layout = torch.channels_last
        try:
            output = model(black.contiguous(memory_format=layout))
        except RuntimeError as error:
            if not refuses_channels_last(error):
                raise
            log.info("Slower, as the network's forward has .view: use .flatten or .reshape there.")
            layout, output = torch.contiguous_format, model(black)
    check_logits(output, 1, data.n_classes)
    return layout


def refuses_channels_last(error: RuntimeError) -> bool:
    """Whether it is that of a `.view` whose input lies channels last in memory."""
    return "view size is not compatible" in str(error)


def check_logits(output: Any, n: int, n_classes: int) -> None:
    """Checks what a network gives for `n` images.

    Raises:
        ValueError: unless it is one tensor of logits (n, n_classes).
    """
    expected = f"Expected a network that returns one tensor of logits ({n}, {n_classes}), for {n} "
    expected += f"image{'s' if n > 1 else ''} and {n_classes} classes, got "
    if isinstance(output, Tensor) and output.shape == (n, n_classes):
        return
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{expected}{_kind(output)}. Return the logits alone: wrap the network in a module "
            "whose forward picks them."
        )
    got = f"{expected}a tensor of shape {tuple(output.shape)}."
    if output.ndim == 2 and len(output) == n:
        raise ValueError(
            f"{got} It has {output.shape[1]} classes: give weights and a network of these "
            f"{n_classes} classes (n_classes is passed on to the function that builds it), or data "
            "of the classes that it was trained on."
        )
    raise ValueError(f"{got} Let its forward end in one row of logits for each image.")


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"{type(output).__name__} of {', '.join(map(repr, output))}"
    if isinstance(output, Sequence):
        return f"{type(output).__name__} of {len(output)}"
    return type(output).__name__


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Eval mode meanwhile; then each module's own mode again, as some may be frozen."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
