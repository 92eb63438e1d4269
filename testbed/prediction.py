"""What a network says of images, and how often it is right."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

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
    """
    black = torch.zeros(1, *data.input_shape, device=device)
    with torch.no_grad(), evaluating(model):
        try:
            model(black.contiguous(memory_format=torch.channels_last))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            log.info("Slower, as the network's forward has .view: use .flatten or .reshape there.")
            return torch.contiguous_format
    return torch.channels_last


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
