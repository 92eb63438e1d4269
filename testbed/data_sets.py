"""Data sets, where images come from: the known ones, .npz files, folders and functions.

What is read here holds training and test images. Only `testbed.data` may use it: that module hands
methods the training images and the final evaluation the test images.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbed.array_checks import OPTIONAL, REQUIRED, Arrays, checked_arrays
from testbed.augmentation import Augmentation
from testbed.data_set import DataSet, LabelledPixels
from testbed.image_folder import MappedPixels, Origin, decode, layout_of
from testbed.names import import_object, is_reference, unknown
from testbed.stratified import test_cut

IMAGE_CACHE = ".image_cache"  # in the folder of the data sets: the decoded images of folders

PHOTOGRAPHS = Augmentation(crop=4, flip=True)
DIGITS = Augmentation(crop=1, flip=False)  # of 8 pixels; a mirrored digit is no digit


@dataclass(frozen=True)
class Source:
    """A data set that has been found, not read."""

    read: Callable[[], Arrays | DataSet]
    augmentation: Augmentation | None = None  # None: chosen by the images' size and channels
    is_quick: bool = True  # can be read in about a second, so that it may be read to be checked
    input_shape: tuple[int, int, int] | None = None  # channels, height, width; where known already


def find(name: str, root: Path, download: bool = True, image_size: int | None = None) -> Source:
    """Finds the data set that the user calls `name`; reads and downloads nothing.

    Raises:
        ValueError: if there is no such data set, file, folder or function, if a folder is laid out
            otherwise than it must be, or if images are to be resized that are in no folder.
    """
    source = _found(name, root, download, image_size)
    if image_size is not None and source.input_shape is None:
        raise ValueError(
            f"data.image_size: only the images of a folder are resized, and {name!r} is none. "
            "Leave it out."
        )
    return source


def _found(name: str, root: Path, download: bool, image_size: int | None) -> Source:
    if name in DATA_SETS:
        return DATA_SETS[name](root, download)
    if is_reference(name):
        function = import_object(name)
        if not callable(function):
            raise ValueError(f"data set {name!r}: expected a function, got {function!r}.")
        return Source(partial(_call, function, root), is_quick=False)
    path = next((path for path in (Path(name), root / name) if path.exists()), None)
    if path is not None and path.is_dir():
        return _folder(path, root, image_size)
    if path is not None and path.suffix == ".npz":
        return Source(partial(_read_npz, path))
    if path is not None:
        raise ValueError(
            f"{str(path)!r} is neither a folder nor a .npz file. Unpack an archive and name its "
            "folder."
        )
    if name.endswith(".npz"):
        raise ValueError(f"There is no file {name!r}, neither here nor in {str(root)!r}.")
    raise ValueError(
        unknown("data set", name, DATA_SETS)
        + " Or name a .npz file, a folder with one sub-folder of images per class, or a function "
        "as package.module:function."
    )


def read(name: str, source: Source) -> DataSet:
    """Reads a data set and checks it.

    Raises:
        ValueError: if it cannot be read or is malformed: what is wrong, and what was expected.
    """
    found = source.read()
    if isinstance(found, DataSet):
        return found
    try:
        return checked_arrays(found)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from error


def _digits(root: Path, download: bool) -> Source:
    return Source(_read_digits, DIGITS)


def _read_digits() -> Arrays:
    # The file of `sklearn.datasets.load_digits`: importing that takes every process a second more.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(
        str(path), delimiter=",", dtype=np.int64
    )  # pixels from 0 to 16, then the digit
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1]
    test = test_cut(labels)
    return {
        "x_train": pixels[~test],
        "y_train": labels[~test],
        "x_test": pixels[test],
        "y_test": labels[test],
        "class_names": [str(digit) for digit in range(10)],
    }


def _cifar(name: str, base_folder: str, root: Path, download: bool) -> Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009): from a .npz file, else through torchvision."""
    path = root / f"{name.lower()}.npz"
    if path.is_file():
        return Source(partial(_read_npz, path), PHOTOGRAPHS)
    if not download and not (root / base_folder).is_dir():
        raise ValueError(
            f"{name} is neither in {str(path)!r} nor in {str(root / base_folder)!r}, and "
            "data.download is false. Put it there, name another folder with --data-root, or allow "
            "the download."
        )
    return Source(partial(_read_torchvision, name, root, download), PHOTOGRAPHS, is_quick=False)


def _read_torchvision(name: str, root: Path, download: bool) -> Arrays:
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        train, test = (kind(str(root), train=half, download=download) for half in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be read or downloaded: {error}. Put "
            f"{name.lower()}.npz ({', '.join(REQUIRED)}) into {str(root)!r}, or see that this "
            "machine reaches the network."
        ) from error
    return {
        "x_train": train.data,
        "y_train": np.array(train.targets),
        "x_test": test.data,
        "y_test": np.array(test.targets),
        "class_names": train.classes,
    }


def _lfw3(root: Path, download: bool) -> Source:
    """Labelled Faces in the Wild as three classes: male, female, background."""
    path = root / "lfw3.npz"
    if not path.is_file():
        raise ValueError(
            f"There is no file {str(path)!r}, and lfw3 cannot be downloaded. Put lfw3.npz "
            f"({', '.join(REQUIRED)}) there, or name the folder where it is with --data-root."
        )
    return Source(partial(_read_npz, path), PHOTOGRAPHS)


def _read_npz(path: Path) -> Arrays:
    try:
        # Opened here because numpy leaves a damaged file open.
        with path.open("rb") as handle, np.load(handle) as file:
            known = REQUIRED + OPTIONAL  # of others the names are of use, to say what there is
            return {key: file[key] if key in known else None for key in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own ValueError speaks of allow_pickle, which would run code out of the file.
        raise ValueError(
            f"Expected arrays of numbers and strings in {str(path)!r}, written by numpy.savez; "
            f"it cannot be read: {error}"
        ) from error


def _call(function: Callable[[Path], Any], root: Path) -> Arrays:
    try:
        result = function(root)
    except Exception as error:  # whatever the user's function raises is the user's to mend
        raise ValueError(
            f"data set function {function.__name__!r} raised {type(error).__name__}: {error}"
        ) from error
    if isinstance(result, Mapping):
        return result
    return {key: getattr(result, key) for key in REQUIRED + OPTIONAL if hasattr(result, key)}


def _folder(folder: Path, root: Path, image_size: int | None) -> Source:
    layout_of(folder)  # for its refusals
    shape = None if image_size is None else (3, image_size, image_size)
    read = partial(_read_folder, folder, (root / IMAGE_CACHE).resolve(), image_size)
    return Source(read, is_quick=False, input_shape=shape)


def _read_folder(folder: Path, cache: Path, image_size: int | None) -> DataSet:
    layout = layout_of(folder)
    parts = {}
    for name, decoded in decode(layout, image_size, cache).items():
        origin = Origin(folder.resolve(), name, image_size, cache)
        labels = layout.parts[name].labels
        pixels = MappedPixels(origin, decoded, torch.arange(len(labels)))
        parts[name] = LabelledPixels(pixels, labels)
    return DataSet(parts["train"], parts["test"], layout.class_names, parts.get("val"))


DATA_SETS: dict[str, Callable[[Path, bool], Source]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, "CIFAR10", "cifar-10-batches-py"),
    "cifar100": partial(_cifar, "CIFAR100", "cifar-100-python"),
    "lfw3": _lfw3,
}
