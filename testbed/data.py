"""The images that networks are trained, chosen and finally tested on, as uint8 pixels.

A method gets `Splits`: training and validation images. Nothing in them leads to the test images,
which `load_test_images` hands to the final evaluation alone.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed import data_sets
from testbed.augmentation import Augmentation, augment, normalise
from testbed.data_set import DataSet, LabelledPixels
from testbed.data_sets import DATA_SETS
from testbed.image_folder import MappedPixels
from testbed.images import Images, NormalisedImages
from testbed.selection import (
    IMAGENET,
    DataOptions,
    Statistics,
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
    "NormalisedImages",
    "Splits",
    "augment",
    "check_data",
    "load_splits",
    "load_test_images",
    "normalise",
]


@dataclass(frozen=True, eq=False)
class Splits:
    """What a method may see of a data set."""

    train: Images
    validation: Images
    class_names: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...]
    """Per channel, in 0..1 units: of the training images, unless the options say otherwise."""
    std: tuple[float, ...]
    """As `mean`; of a channel that never varies 1."""
    own_statistics: bool = True
    """Whether these are the training images' own."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train.shape
        return channels, height, width

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def augmented(self, images: Images, generator: torch.Generator) -> Tensor:
        """Pixels to train on: (n, channels, height, width) uint8, as `augment` draws them."""
        is_cropped = self.augmentation.resized_crop is not None
        pixels = images.pixels_with_margin if is_cropped else images.pixels
        return augment(pixels, self.augmentation, generator)

    def normalised(self, images: Images) -> NormalisedImages:
        """The inputs of a network, computed slice by slice; not augmented."""
        return NormalisedImages(images, self.mean, self.std)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that training depends on here: images, labels, order, augmentation."""
        digest = hashlib.sha256(repr((self.class_names, self.augmentation)).encode())
        if self.augmentation.resized_crop is not None:
            digest.update(f"resized crop {self.augmentation.resized_crop}".encode())
        if not self.own_statistics:
            digest.update(repr((self.mean, self.std)).encode())
        for images in (self.train, self.validation):
            digest.update(repr(images.shape).encode())
            digest.update(images.source.hashed())
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
    class_names = tuple(data_set.class_names[index] for index in classes)
    rows = training_rows(options, data_set, classes)
    labels = relabelled(data_set.train.labels, classes)[rows]
    if data_set.validation is not None:
        train = _picked(data_set.train.pixels, rows, labels)
        validation = _of_classes(data_set.validation, classes)
    else:
        persons = None if data_set.person_train is None else data_set.person_train[rows]
        in_validation = validation_cut(options, labels, class_names, persons, seed)
        train, validation = (
            _picked(data_set.train.pixels, rows[part], labels[part])
            for part in (~in_validation, in_validation)
        )
    _check_options(options, train.shape[1:])
    given = _given_statistics(options)
    mean, std = (given.mean, given.std) if given else _mean_and_std(train)
    augmentation = _augmentation(options, source.augmentation, train)
    return Splits(train, validation, class_names, augmentation, mean, std, given is None)


def load_test_images(options: DataOptions | str, root: Path) -> Images:
    """All test images of the chosen classes. Only the final evaluation may call this.

    Raises:
        ValueError: as `load_splits`.
    """
    options = _options(options)
    _, data_set = _read(options, root)
    images = _of_classes(data_set.test, chosen_classes(options, data_set))
    if not len(images):
        raise ValueError(f"data set {options.name!r} has no test image of the chosen classes.")
    return images


def check_data(options: DataOptions | str, root: Path) -> None:
    """Finds the user's mistakes in a second or so, before anything starts; downloads nothing.

    What can be read quickly is read and cut as for a trial: digits and .npz files. Of a folder the
    files' names are looked at. Of the others it is only checked that they are there.

    Raises:
        ValueError: as `load_splits`.
    """
    options = _options(options)
    source = _find(options, root)
    if source.input_shape is not None:
        _check_options(options, source.input_shape)
    if source.is_quick:
        load_splits(options, root, seed=0)
        load_test_images(options, root)


def _options(options: DataOptions | str) -> DataOptions:
    return DataOptions(name=options) if isinstance(options, str) else options


def _find(options: DataOptions, root: Path) -> data_sets.Source:
    return data_sets.find(options.name, root, options.download, options.image_size)


def _read(options: DataOptions, root: Path) -> tuple[data_sets.Source, DataSet]:
    source = _find(options, root)
    return source, data_sets.read(options.name, source)


def _of_classes(part: LabelledPixels, classes: list[int]) -> Images:
    labels = relabelled(part.labels, classes)
    chosen = np.flatnonzero(labels >= 0)
    return _picked(part.pixels, chosen, labels[chosen])


def _picked(
    pixels: NDArray[np.uint8] | MappedPixels, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> Images:
    """Those rows, and nothing that leads back to the others: arrays are copied."""
    if isinstance(pixels, MappedPixels):
        return Images(pixels.select(torch.from_numpy(rows)), torch.from_numpy(labels))
    return Images(torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2), torch.from_numpy(labels))


def _check_options(options: DataOptions, input_shape: tuple[int, int, int]) -> None:
    """Refuses options that do not fit images of that shape."""
    channels, height, width = input_shape
    side = min(height, width)
    if options.crop is not None and options.crop >= side:
        raise ValueError(
            f"data.crop: expected fewer than the {side} pixels of the images' side, got "
            f"{options.crop}."
        )
    given = _given_statistics(options)
    if given is not None and len(given.mean) != channels:
        raise ValueError(
            f"data.normalisation: expected means and deviations of the images' {channels} "
            f"channel{'s' * (channels != 1)}, got {len(given.mean)}."
        )


def _given_statistics(options: DataOptions) -> Statistics | None:
    if options.normalisation == "imagenet":
        return IMAGENET
    return None if options.normalisation == "data" else options.normalisation


def _mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, in 0..1 units; of sums of integers, so the same on every machine."""
    n, total, squares = images.source.channel_sums()
    mean = total.double() / n
    variance = squares.double() / n - mean**2
    std = torch.where(variance > 0, variance.clamp(min=0).sqrt() / 255, 1.0)
    return tuple((mean / 255).tolist()), tuple(std.tolist())


def _augmentation(options: DataOptions, usual: Augmentation | None, images: Images) -> Augmentation:
    """The data set's own unless the options say otherwise.

    For a data set that says nothing: flips if any image is in colour, and shifts by an eighth of
    the side, or random resized crops where images were resized.
    """
    _, channels, height, width = images.shape
    if usual is None:
        flip = channels == 3 and images.source.in_colour()
        crop = 0 if options.image_size else min(height, width) // 8
        usual = Augmentation(crop, flip, resized_crop=options.image_size)
    return Augmentation(
        usual.crop if options.crop is None else options.crop,
        usual.flip if options.flip is None else options.flip,
        usual.resized_crop if options.crop is None else None,
    )
