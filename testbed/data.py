"""The images that networks are trained, chosen and finally tested on, as uint8 tensors.

A method gets `Splits`: training and validation images. Nothing in them leads to the test images,
which `load_test_images` hands to the final evaluation alone.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed import data_sets
from testbed.augmentation import Augmentation, augment, normalise
from testbed.data_sets import DATA_SETS, DataSet
from testbed.selection import (
    DataOptions,
    chosen_classes,
    relabelled,
    training_rows,
    validation_cut,
)

__all__ = [
    "DATA_SETS",
    "Augmentation",
    "DataOptions",
    "Images",
    "Splits",
    "augment",
    "check_data",
    "load_splits",
    "load_test_images",
    "normalise",
]


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes. They lie channels last in memory, as they are stored and used."""

    pixels: Tensor
    """(n, channels, height, width) uint8. Trials share them: never write to them."""
    labels: Tensor
    """(n,) int64, from 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as they lie in memory, so that picklers that share contiguous memory between
        # processes neither copy the pixels nor lay them out anew.
        return _images, (self.pixels.permute(0, 2, 3, 1), self.labels)

    def select(self, indices: Tensor) -> "Images":
        """Those images, in that order; ten times as fast as `pixels[indices]`.

        Args:
            indices: (k,) int64, on the images' device.
        """
        pixels = self.pixels.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
        return Images(pixels, self.labels.index_select(0, indices))


@dataclass(frozen=True, eq=False)
class Splits:
    """What a method may see of a data set."""

    train: Images
    validation: Images
    class_names: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...]
    """Per channel, of the training images, in 0..1 units."""
    std: tuple[float, ...]
    """As `mean`; 1 for a channel that never varies."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that training depends on here: images, labels, order, augmentation."""
        digest = hashlib.sha256(repr((self.class_names, self.augmentation)).encode())
        for images in (self.train, self.validation):
            digest.update(repr(tuple(images.pixels.shape)).encode())
            digest.update(images.pixels.permute(0, 2, 3, 1).contiguous().numpy().data)
            digest.update(images.labels.numpy().data)
        return digest.hexdigest()


def load_splits(options: DataOptions | str, root: Path, seed: int) -> Splits:
    """Loads training and validation images.

    Args:
        options: a name stands for `DataOptions(name=...)`.
        root: the folder of the data sets; a missing CIFAR is downloaded to it.
        seed: which of the training images are for validation.

    Raises:
        ValueError: if the data set is unknown, missing or malformed, or cannot be cut like this.
    """
    options = _options(options)
    source, data_set = _read(options, root)
    classes = chosen_classes(options, data_set)
    rows = training_rows(options, data_set, classes)
    labels = relabelled(data_set.y_train, classes)[rows]
    class_names = tuple(data_set.class_names[index] for index in classes)
    persons = None if data_set.person_train is None else data_set.person_train[rows]
    in_validation = validation_cut(options, labels, class_names, persons, seed)
    train, validation = (
        _picked(data_set.x_train, rows[part], labels[part])
        for part in (~in_validation, in_validation)
    )
    mean, std = _mean_and_std(train.pixels)
    return Splits(
        train,
        validation,
        class_names,
        _augmentation(options, source.augmentation, train.pixels),
        mean,
        std,
    )


def load_test_images(options: DataOptions | str, root: Path) -> Images:
    """All test images of the chosen classes. Only the final evaluation may call this.

    Raises:
        ValueError: as `load_splits`.
    """
    options = _options(options)
    _, data_set = _read(options, root)
    labels = relabelled(data_set.y_test, chosen_classes(options, data_set))
    chosen = np.flatnonzero(labels >= 0)
    if not len(chosen):
        raise ValueError(f"data set {options.name!r} has no test image of the chosen classes.")
    return _picked(data_set.x_test, chosen, labels[chosen])


def check_data(options: DataOptions | str, root: Path) -> None:
    """Finds the user's mistakes in a second or so, before anything starts; downloads nothing.

    What can be read quickly is read and cut as for a trial: digits and .npz files. Of the others it
    is only checked that they are there.

    Raises:
        ValueError: as `load_splits`.
    """
    options = _options(options)
    if data_sets.find(options.name, root, options.download).is_quick:
        load_splits(options, root, seed=0)
        load_test_images(options, root)


def _options(options: DataOptions | str) -> DataOptions:
    return DataOptions(name=options) if isinstance(options, str) else options


def _read(options: DataOptions, root: Path) -> tuple[data_sets.Source, DataSet]:
    source = data_sets.find(options.name, root, options.download)
    return source, data_sets.read(options.name, source)


def _images(pixels: Tensor, labels: Tensor) -> Images:
    """Of pixels as they are stored: (n, height, width, channels)."""
    return Images(pixels.permute(0, 3, 1, 2), labels)


def _picked(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> Images:
    """A copy of those rows, and nothing that leads back to the others."""
    return _images(torch.from_numpy(pixels[rows]), torch.from_numpy(labels))


def _mean_and_std(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, in 0..1 units; summed in integers, so the same on every machine."""
    n, channels, height, width = pixels.shape
    total, squares = torch.zeros(2, channels, dtype=torch.int64)
    for chunk in pixels.split(1024):
        values = chunk.to(torch.int32)
        total += values.sum(dim=(0, 2, 3))
        squares += (values * values).sum(dim=(0, 2, 3))
    mean = total.double() / (n * height * width)
    variance = squares.double() / (n * height * width) - mean**2
    std = torch.where(variance > 0, variance.clamp(min=0).sqrt() / 255, 1.0)
    return tuple((mean / 255).tolist()), tuple(std.tolist())


def _augmentation(options: DataOptions, usual: Augmentation | None, pixels: Tensor) -> Augmentation:
    """The data set's own unless the options say otherwise.

    For a data set that says nothing: shifts by an eighth of the side, and flips if in colour.
    """
    _, channels, height, width = pixels.shape
    side = min(height, width)
    usual = usual or Augmentation(crop=side // 8, flip=channels == 3)
    crop = usual.crop if options.crop is None else options.crop
    if crop >= side:
        raise ValueError(
            f"data.crop: expected fewer than the {side} pixels of the images' side, got {crop}."
        )
    return Augmentation(crop, usual.flip if options.flip is None else options.flip)
