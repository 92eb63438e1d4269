"""Whole batches of uint8 images: cropped, mirrored and normalised without a loop over images.

Images are (n, channels, height, width) tensors that lie channels last in memory, as `testbed.data`
loads them. Other layouts give the same values, more slowly. `benchmarks/data_speed.py` measures
this module against torchvision's transforms in a DataLoader.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

AREA = (0.08, 1.0)  # of a random resized crop, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # of its width to its height
ATTEMPTS = 10  # at a crop that fits into the image; then the whole image is taken
AT_ONCE = 32  # images resized together: more do not stay in a CPU's cache


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image in every epoch."""

    crop: int
    """Shift by up to this many pixels each way; zeros (black) come in from outside. 0: none."""
    flip: bool
    """Mirror left and right with probability one half."""
    resized_crop: int | None = field(default=None, repr=False)  # a repr is part of fingerprints
    """Take a random part of the image and resize it to a square of this side; before shifts."""


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crops, mirrors and shifts each image by its own draw.

    As torchvision's RandomResizedCrop (where there is one), RandomHorizontalFlip, RandomCrop.

    Args:
        pixels: (n, channels, height, width) uint8, on any device; never written to.
        generator: may be a CPU generator whatever the images' device: the same seed then gives the
            same images everywhere.

    Returns:
        uint8 of the same shape, or of that of the resized crops; `pixels` itself where the
        augmentation is none.
    """
    if augmentation.resized_crop is not None:
        pixels = _crop_and_resize(pixels, augmentation.resized_crop, generator)
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


def _crop_and_resize(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    n, channels, height, width = pixels.shape
    left, top, right, bottom = _random_boxes(n, height, width, generator)
    # From an output's coordinates to the image's, both from -1 to 1 (see F.affine_grid).
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 0, 2] = (right - left) / width, (right + left) / width - 1
    affine[:, 1, 1], affine[:, 1, 2] = (bottom - top) / height, (bottom + top) / height - 1
    resized = torch.empty(n, side, side, channels, dtype=torch.uint8, device=pixels.device)
    crops = resized.permute(0, 3, 1, 2)
    parts = affine.to(pixels.device).split(AT_ONCE)
    for crop, part, each in zip(crops.split(AT_ONCE), parts, pixels.split(AT_ONCE), strict=True):
        grid = F.affine_grid(part, [len(part), channels, side, side], align_corners=False)
        found = F.grid_sample(each.float(), grid, padding_mode="border", align_corners=False)
        crop.copy_(found.round_())
    return crops


def _random_boxes(
    n: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, right and bottom of the crops, (n,) each; sides and places are whole pixels."""
    draws = torch.rand(4, n, ATTEMPTS, generator=generator, device=generator.device).cpu()
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * draws[0])
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * draws[1])
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    none = ~fits.any(dim=1)
    widths = widths.gather(1, first).squeeze(1).masked_fill(none, width)
    heights = heights.gather(1, first).squeeze(1).masked_fill(none, height)
    left = ((width - widths + 1) * draws[2, :, 0]).floor()
    top = ((height - heights + 1) * draws[3, :, 0]).floor()
    return left, top, left + widths, top + heights


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
