"""Image hash: a number drawn for each image by its pixels, the same in any batch and every time."""

import torch
from torch import Tensor

BITS = 24  # as many as a float32 holds
# Of the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
# generators", OOPSLA), as signed integers.
STEP, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def uniform_of_images(images: Tensor, seed: Tensor | int) -> Tensor:
    """(n,) float32, as if drawn evenly from 0 to 1, of images (n, C, H, W).

    Integers alone are added up, so the order of the additions does not matter.
    """
    bits = images.float().contiguous().view(torch.int32).flatten(1).to(torch.int64)
    places = torch.arange(bits.shape[1], dtype=torch.int64, device=images.device)
    keys = _mixed(places * STEP + seed) | 1
    hashed = _mixed((_mixed(bits + keys) * keys).sum(dim=1))
    return _shifted(hashed, 64 - BITS).float() / 2**BITS


def _mixed(values: Tensor) -> Tensor:
    """The finaliser: every bit of an int64 changes half of the others."""
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (values >> by) & ((1 << (64 - by)) - 1)
