"""Image folder: images in files, one sub-folder per class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Files that end otherwise (notes, checksums) are no images and are left alone."""


def class_folders(folder: Path) -> list[str]:
    """The classes: the names of the sub-folders, sorted; hidden ones are not looked at.

    Raises:
        ValueError: if there are fewer than two.
    """
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    names = [name for name in inside if not name.startswith(".")]
    if len(names) < 2:
        raise ValueError(
            f"Expected one sub-folder of images per class, two or more, in {str(folder)!r}, "
            f"got {len(names)}."
        )
    return names


def read_images(
    folder: Path, class_names: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images of the classes' sub-folders in RGB (n, H, W, 3), ordered by name, and labels (n,).

    Raises:
        ValueError: if an image cannot be read or differs in size from the first, or there is none.
    """
    paths = [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not paths:
        raise ValueError(f"There is no image in the sub-folders of {str(folder)!r}.")
    images = [_read_image(path) for path, _ in paths]
    for image, (path, _) in zip(images, paths, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"Expected images of one size, got {_size(images[0])} in {str(paths[0][0])!r} and "
                f"{_size(image)} in {str(path)!r}. Scale them to one size first."
            )
    return np.stack(images), np.array([label for _, label in paths])


def _read_image(path: Path) -> NDArray[np.uint8]:
    from PIL import Image  # only this source of images needs it

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:  # includes PIL's UnidentifiedImageError
        raise ValueError(f"Cannot read the image {str(path)!r}: {error}") from error


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
