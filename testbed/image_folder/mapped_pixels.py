"""Pixels of an image folder that stay in their memory-mapped file until they are asked for."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed.image_folder.decoded import Decoded, decode, open_decoded
from testbed.image_folder.layout import layout_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Origin:
    """Where decoded images come from, so that any process of any node can open them."""

    folder: Path
    part: str
    """train, val or test."""
    image_size: int | None
    """The side of the square that networks see; None: the images as they are."""
    cache: Path


@dataclass(frozen=True, eq=False)
class MappedPixels:
    """Images of one part of a folder, k of them; a `PixelSource`."""

    origin: Origin
    decoded: Decoded
    rows: Tensor
    """(k,) int64, on the CPU: which of the part's images these are."""
    device: torch.device = CPU
    """Where pixels come to when they are asked for."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width, channels = self.decoded.shape
        size = self.origin.image_size
        return len(self.rows), channels, size or height, size or width

    def select(self, places: Tensor | slice) -> Self:
        rows = self.rows[places.cpu() if isinstance(places, Tensor) else places]
        return replace(self, rows=rows)

    def to(self, device: torch.device) -> Self:
        return replace(self, device=device)

    def read(self, margin: bool = False) -> Tensor:
        stored = self.decoded.tensor()
        first, n = int(self.rows[0]) if len(self.rows) else 0, len(self.rows)
        if torch.equal(self.rows, torch.arange(first, first + n)):
            pixels = stored[first : first + n]  # nothing is copied
        else:
            pixels = stored.index_select(0, self.rows)
        pixels = pixels.permute(0, 3, 1, 2)
        if not margin:
            _, _, height, width = self.shape
            top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
            pixels = pixels[:, :, top : top + height, left : left + width]
        return pixels.to(self.device)

    def hashed(self) -> bytes:
        return sha256(self._facts("digest").data).digest()

    def channel_sums(self) -> tuple[int, Tensor, Tensor]:
        height, width, _ = self.decoded.shape
        values, squares = torch.from_numpy(self._facts("sums").sum(axis=0))
        return len(self.rows) * height * width, values, squares

    def in_colour(self) -> bool:
        return bool(self._facts("in_colour").any())

    def _facts(self, name: str) -> NDArray[Any]:
        return np.ascontiguousarray(self.decoded.facts[name][self.rows.numpy()])

    def __reduce__(self) -> tuple[Any, ...]:
        whole = sha256(self.decoded.facts.data).hexdigest()
        return _opened, (self.origin, self.decoded.place, whole, self.rows, self.device)


def _opened(
    origin: Origin, place: Path, whole: str, rows: Tensor, device: torch.device
) -> MappedPixels:
    """The same pixels in another process; decoded there if its node has not done so.

    Args:
        place: where they were decoded.
        whole: the digest of what is known of all images of the part.

    Raises:
        ValueError: if this node's folder has other images.
    """
    if place.is_dir():
        return MappedPixels(origin, open_decoded(place), rows, device)
    layout = layout_of(origin.folder)
    part = replace(layout, parts={origin.part: layout.parts[origin.part]})
    decoded = decode(part, origin.image_size, origin.cache)[origin.part]
    if sha256(decoded.facts.data).hexdigest() != whole:
        raise ValueError(
            f"image folder {str(origin.folder)!r} has other images on this machine than where the "
            "sweep was started. Copy the folder, or keep it on a shared disk."
        )
    return MappedPixels(origin, decoded, rows, device)
