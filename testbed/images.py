"""Images with their classes, in memory or in a memory-mapped file, and normalised batches of them.

What may be larger than memory is never read whole: take slices, `select` or `batches`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from testbed.augmentation import normalise


def read_only_tensor(array: np.ndarray) -> Tensor:
    """An array that may not be written to, in the same memory; nor may the tensor be."""
    with warnings.catch_warnings():
        # Torch has no read-only tensors and warns that this one could be written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class PixelSource(Protocol):
    """uint8 pixels of n images that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, channels, height, width: as networks see them."""
        ...

    def select(self, places: Tensor | slice) -> Self:
        """Those images, in that order. `places`: (k,) int64, or a slice."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same pixels; what is read of them is on `device`."""
        ...

    def read(self, margin: bool = False) -> Tensor:
        """(n, channels, height, width), channels last in memory.

        Args:
            margin: with what is stored around the part that networks see, for crops.
        """
        ...

    def hashed(self) -> bytes | memoryview:
        """What stands for all pixels, and no others, in a fingerprint."""
        ...

    def channel_sums(self) -> tuple[int, Tensor, Tensor]:
        """How many values a channel has; of each channel the sum of them, and of their squares."""
        ...

    def in_colour(self) -> bool:
        """Whether the channels of any pixel differ."""
        ...


@dataclass(frozen=True, eq=False)
class PixelsInMemory:
    """A tensor as a `PixelSource`."""

    pixels: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n, channels, height, width = self.pixels.shape
        return n, channels, height, width

    def select(self, places: Tensor | slice) -> Self:
        if isinstance(places, slice):
            return type(self)(self.pixels[places])
        # Ten times as fast as `pixels[places]`.
        stored = self.pixels.permute(0, 2, 3, 1)
        return type(self)(stored.index_select(0, places).permute(0, 3, 1, 2))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.pixels.to(device))

    def read(self, margin: bool = False) -> Tensor:
        return self.pixels

    def hashed(self) -> bytes | memoryview:
        return self.pixels.permute(0, 2, 3, 1).contiguous().numpy().data

    def channel_sums(self) -> tuple[int, Tensor, Tensor]:
        n, channels, height, width = self.pixels.shape
        total, squares = torch.zeros(2, channels, dtype=torch.int64)
        for chunk in self.pixels.split(1024):
            values = chunk.to(torch.int32)
            total += values.sum(dim=(0, 2, 3))
            squares += (values * values).sum(dim=(0, 2, 3))
        return n * height * width, total, squares

    def in_colour(self) -> bool:
        return any(bool((chunk != chunk[:, :1]).any()) for chunk in self.pixels.split(1024))

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as they lie in memory, so that picklers that share contiguous memory between
        # processes neither copy the pixels nor lay them out anew.
        return _channels_last, (self.pixels.permute(0, 2, 3, 1),)


def _channels_last(stored: Tensor) -> PixelsInMemory:
    return PixelsInMemory(stored.permute(0, 3, 1, 2))


class Images:
    """Images and their classes. Trials share the pixels: never write to them."""

    def __init__(self, pixels: Tensor | PixelSource, labels: Tensor) -> None:
        """
        Args:
            pixels: (n, channels, height, width) uint8, channels last in memory for speed.
            labels: (n,) int64, from 0.
        """
        self.source: PixelSource = PixelsInMemory(pixels) if isinstance(pixels, Tensor) else pixels
        self.labels = labels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, channels, height, width."""
        return self.source.shape

    @property
    def pixels(self) -> Tensor:
        """(n, channels, height, width) uint8, as networks see them.

        Of an image folder they are read here: ask for a part if there may be many.
        """
        return self.source.read()

    @property
    def pixels_with_margin(self) -> Tensor:
        """As `pixels`, with what is stored around them for random crops, if anything is."""
        return self.source.read(margin=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, places: slice) -> "Images":
        return Images(self.source.select(places), self.labels[places])

    def select(self, indices: Tensor) -> "Images":
        """Those images, in that order. `indices`: (k,) int64, on the images' device."""
        return Images(self.source.select(indices), self.labels.index_select(0, indices))

    def drawn(self, n: int, generator: torch.Generator) -> "Images":
        """n of the images, or all where they are fewer, at random; `generator`: of the CPU."""
        places = torch.randperm(len(self), generator=generator)[:n]
        return self.select(places.to(self.labels.device))

    def batches(self, size: int) -> Iterator["Images"]:
        """All images in their order, `size` at a time; the last ones may be fewer."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def to(self, device: torch.device) -> "Images":
        """The images on a device; of an image folder each batch, when it is asked for."""
        return Images(self.source.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class NormalisedImages:
    """The floats that a network takes, computed slice by slice."""

    images: Images
    mean: Sequence[float]
    std: Sequence[float]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, places: slice) -> Tensor:
        """(k, channels, height, width) float32, on the images' device."""
        return normalise(self.images[places].pixels, self.mean, self.std)
