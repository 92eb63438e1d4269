"""Whole batches of uint8 images: shifted, mirrored and normalised without a loop over images.

Images are (n, channels, height, width) tensors that lie channels last in memory, as `testbed.data`
loads them. Other layouts give the same values, more slowly. `benchmarks/data_speed.py` measures
this module against torchvision's transforms in a DataLoader.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image in every epoch."""

    crop: int
    """Shift by up to this many pixels each way; zeros (black) come in from outside. 0: none."""
    flip: bool
    """Mirror left and right with probability one half."""


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Shifts and mirrors each image by its own draw: RandomHorizontalFlip, then RandomCrop.

    Args:
        pixels: (n, channels, height, width) uint8, on any device; never written to.
        generator: may be a CPU generator whatever the images' device: the same seed then gives the
            same images everywhere.

    Returns:
        uint8 of the same shape; `pixels` itself where the augmentation is none.
    """
    if augmentation.flip:
        pixels = _mirror_half(pixels, generator)
    if augmentation.crop:
        pixels = _shift(pixels, augmentation.crop, generator)
    return pixels


def normalise(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """`(pixels / 255 - mean) / std` per channel, computed in float32 and rounded once to `dtype`.

    Args:
        pixels: (n, channels, height, width) uint8.
        mean, std: one per channel, in 0..1 units.

    Raises:
        ValueError: if the pixels are not uint8, or their channels are not as many as the means.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != len(mean):
        raise ValueError(
            f"Expected uint8 images of shape (batch, {len(mean)}, height, width), "
            f"got {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}."
        )

    def for_each_pixel(per_channel: Tensor) -> Tensor:
        # One value per pixel of an image, laid out as the images are: eight times as fast as
        # broadcasting three values over the last dimension in memory.
        image = per_channel.view(1, -1, 1, 1).expand(1, *pixels.shape[1:])
        return image.to(pixels.device).contiguous(memory_format=memory_format)

    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    offset = 255 * torch.tensor(mean, dtype=torch.float64)
    values = pixels.to(torch.float32, memory_format=memory_format)
    values.sub_(for_each_pixel(offset.float())).mul_(for_each_pixel(scale.float()))
    return values.to(dtype)


def _mirror_half(pixels: Tensor, generator: torch.Generator) -> Tensor:
    n = len(pixels)
    both = torch.cat([_channels_last(pixels), _channels_last(pixels.flip(-1))])
    mirrored = _draw(2, n, generator)
    chosen = torch.arange(n) + n * mirrored
    return both.index_select(0, chosen.to(pixels.device)).permute(0, 3, 1, 2)


def _shift(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    n, channels, height, width = pixels.shape
    padded = F.pad(_channels_last(pixels), (0, 0, *[padding] * 4)).contiguous()
    _, rows, columns, _ = padded.shape
    # A view of every window of height x width that starts at some pixel of the batch, whichever:
    # those that run over an edge are never chosen. A window is then one index, copied row by row.
    # This is four times as fast as indexing Tensor.unfold's views, twenty times as fast as an
    # index per pixel.
    last_start = n * rows * columns - (height - 1) * columns - width
    windows = padded.as_strided(
        (last_start + 1, height, width * channels), (channels, columns * channels, 1)
    )
    down = _draw(2 * padding + 1, n, generator)
    right = _draw(2 * padding + 1, n, generator)
    starts = (torch.arange(n) * rows + down) * columns + right
    chosen = windows.index_select(0, starts.to(pixels.device))
    return chosen.view(n, height, width, channels).permute(0, 3, 1, 2)


def _draw(high: int, n: int, generator: torch.Generator) -> Tensor:
    """(n,) integers below `high`, on the CPU."""
    return torch.randint(high, (n,), generator=generator, device=generator.device).cpu()


def _channels_last(pixels: Tensor) -> Tensor:
    """(n, height, width, channels): a view."""
    return pixels.permute(0, 2, 3, 1)
