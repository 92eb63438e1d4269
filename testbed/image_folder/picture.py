"""One picture file as uint8 pixels in RGB, whichever way it was stored."""

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BITS_AS_I = ("PNG", "PPM")  # formats of at most 16 bits, which Pillow may open as 32
BACKGROUND = "white"  # behind what is transparent, as on the pages such pictures are made for


def read_picture(path: Path, side: int | None) -> NDArray[np.uint8]:
    """The picture, upright by its EXIF orientation, (height, width, 3); of an animation the first.

    16 bits are scaled to 8; what is transparent gets a white background.

    Args:
        side: the shorter side is resized to it (bilinear, antialiased), the middle square is kept.

    Raises:
        ValueError: if it is of no known kind, or its pixels have 32 bits each.
        Exception: whatever else Pillow raises on a damaged file.
    """
    # Opened here since Pillow turns a TIFF wrongly where it may map its file into memory.
    with path.open("rb") as file, _opened(file) as image:
        if side is not None:
            image.draft(None, (2 * side, 2 * side))  # lets JPEG skip detail that is not needed
        deep = image.mode.startswith("I;16") or (
            image.mode == "I" and image.format in SIXTEEN_BITS_AS_I
        )
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _rgb(_to_8_bits(image) if deep else image)
        return np.ascontiguousarray(rgb if side is None else _middle_square(rgb, side))


def _opened(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:  # whose text names the file as Python shows it
        raise ValueError("it is no picture of a known kind") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of no known range. Save it with 8 or 16 bits")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _middle_square(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = left, top, left + shorter, top + shorter
    return image.resize((side, side), Image.Resampling.BILINEAR, box)
