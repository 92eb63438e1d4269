"""Decoded images: memory-mapped uint8 pixels, written once for all processes of a node."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from testbed.file_lock import locked
from testbed.image_folder.layout import Layout, Part
from testbed.image_folder.picture import read_picture
from testbed.images import read_only_tensor

DECODED_AS = 1  # to be raised when the same files would give other pixels
MARGIN = 256 / 224  # of the side that is stored to the side that networks see, usual for ImageNet
PIXELS, FACTS = "pixels.npy", "facts.npy"
FACT = np.dtype(
    [
        ("digest", np.uint8, 32),  # SHA-256 of the pixels
        ("sums", np.int64, (2, 3)),  # of each channel's values, and of their squares
        ("in_colour", np.bool_),  # whether any pixel is not grey
    ]
)
"""What is known of an image, so that no pixel need be read to know it of many."""
VALUES = np.arange(256)  # of a uint8

Shape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True, eq=False)
class Decoded:
    """The n images of one part of a folder, and what is known of each."""

    place: Path
    """The folder that holds the files."""
    pixels: NDArray[np.uint8]
    """(n, height, width, 3), memory-mapped; not to be written to."""
    facts: NDArray[np.void]
    """(n,) of type `FACT`."""

    @property
    def shape(self) -> Shape:
        """Of an image as it is stored."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    def tensor(self) -> Tensor:
        """The pixels, in the same memory."""
        return read_only_tensor(self.pixels)


def decode(layout: Layout, image_size: int | None, cache: Path) -> dict[str, Decoded]:
    """The decoded images of each part: from the cache, unless a file is new or has changed.

    Args:
        image_size: the side of the square that networks see. Of each image the shorter side is
            resized to 256/224 of it, so that crops have room, and the middle square is kept. None:
            images are of one size and stay so.
        cache: a folder, made if it is not there.

    Raises:
        ValueError: if images cannot be read (all of them are named), if they differ in size, or if
            the disk has too little space for them.
    """
    side = None if image_size is None else round(MARGIN * image_size)
    shape = None if side is None else (side, side, 3)
    places = {
        name: cache / f"{layout.folder.resolve().name}-{name}-{_key(layout, part, side)}"
        for name, part in layout.parts.items()
    }
    missing = [part for name, part in layout.parts.items() if not places[name].is_dir()]
    decoded: dict[str, Decoded] = {}
    broken: list[str] = []
    with _progress_bar(sum(len(part.paths) for part in missing)) as advance:
        for name, part in layout.parts.items():
            place = places[name]
            if not place.is_dir():
                cache.mkdir(parents=True, exist_ok=True)
                with locked(_beside(place, "lock")):
                    if not place.is_dir():  # else another process made it while this one waited
                        shape = shape or _shape_of_first(layout.folder, part)
                        broken += _write(place, layout.folder, part, side, shape, advance)
            if place.is_dir():
                decoded[name] = open_decoded(place)
                shape = decoded[name].shape
    if broken:
        raise ValueError(
            f"image folder {str(layout.folder)!r}: {len(broken)} of its images cannot be read. "
            "Repair them, or remove them:\n  " + "\n  ".join(sorted(broken))
        )
    return decoded


def open_decoded(place: Path) -> Decoded:
    """What `decode` left in a folder of its cache; reads no pixel."""
    return Decoded(place, np.load(place / PIXELS, mmap_mode="r"), np.load(place / FACTS))


def _beside(place: Path, ending: str) -> Path:
    return place.parent / f"{place.name}.{ending}"


def _key(layout: Layout, part: Part, side: int | None) -> str:
    """Another one for other files: their names, sizes and times of change."""

    def identity(path: Path) -> tuple[int, ...]:
        try:
            status = path.stat()
        except OSError:  # reading the image will say why
            return ()
        return status.st_size, status.st_mtime_ns

    folder = layout.folder.resolve()
    files = [(path, *identity(folder / path)) for path in part.paths]
    text = json.dumps([DECODED_AS, side, str(folder), files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shape_of_first(folder: Path, part: Part) -> Shape:
    """Of the first image that can be read; nothing if none can."""
    for path in part.paths:
        try:
            height, width, channels = read_picture(folder / path, None).shape
        except Exception:  # is met and reported once more, among all that cannot be read
            continue
        return height, width, channels
    return 0, 0, 3


def _write(
    place: Path,
    folder: Path,
    part: Part,
    side: int | None,
    shape: Shape,
    advance: Callable[[], None],
) -> list[str]:
    """Decodes a part by all cores; returns what is wrong, a line for each image.

    The files get their place once they are whole, if every image could be read.
    """
    n, size = len(part.paths), prod(shape)
    _check_space(place.parent, n * size)
    facts = np.empty(n, FACT)
    partial = _beside(place, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        with (partial / PIXELS).open("wb") as file, ThreadPool() as pool:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start = file.tell()

            def decode_one(number: int) -> str | None:
                try:
                    pixels = read_picture(folder / part.paths[number], side)
                except Exception as error:  # Pillow raises anything on a damaged file
                    return f"{part.paths[number]}: {error}"
                if pixels.shape != shape:
                    raise ValueError(_differ(folder, part.paths[number], pixels.shape, shape))
                _write_at(file.fileno(), pixels.data.cast("B"), start + number * size)
                facts[number] = _facts(pixels)
                return None

            broken = []
            for problem in pool.imap_unordered(decode_one, range(n), chunksize=4):
                broken += [problem] if problem else []
                advance()
            os.fsync(file.fileno())
        if not broken:
            np.save(partial / FACTS, facts)
            partial.rename(place)
        return broken
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _facts(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64], bool]:
    """The `FACT` of an image."""
    digest = np.frombuffer(hashlib.sha256(pixels.data).digest(), np.uint8)
    counts = np.array(Image.fromarray(pixels).histogram()).reshape(3, 256)
    sums = np.stack([counts @ VALUES, counts @ VALUES**2])
    return digest, sums, bool((pixels != pixels[..., :1]).any())


def _write_at(file: int, content: memoryview, offset: int) -> None:
    """Writes into a file, not into a mapping of it: a full disk then raises and does not kill."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"Expected {needed / 1e9:.1f} GB of free disk in {str(folder)!r}, for the decoded "
            f"images, got {free / 1e9:.1f} GB. Free some, or name another folder with --data-root."
        )


def _differ(folder: Path, path: str, shape: tuple[int, ...], expected: Shape) -> str:
    return (
        f"image folder {str(folder)!r}: expected images of one size, got {_size(expected)} and, in "
        f"{path!r}, {_size(shape)}. Set data.image_size to have all of them resized: "
        "image_size: 224, say."
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[], None]]:
    """Gives what moves the bar on by one; there is none without a terminal, or nothing to do."""
    if total == 0 or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Decoding images", total=total)
        yield lambda: bar.advance(task)
