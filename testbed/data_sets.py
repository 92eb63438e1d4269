"""Data sets, where images come from: the known ones, .npz files, folders and functions.

What is read here holds training and test images. Only `testbed.data` may use it: that module hands
methods the training images and the final evaluation the test images.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.augmentation import Augmentation
from testbed.image_folder import class_folders, read_images
from testbed.names import import_object, is_reference, unknown
from testbed.stratified import draw

TEST_SHARE = 0.2
"""Of the images, where a data set brings no test images of its own."""
TEST_CUT_SEED = 0
REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("class_names", "person_train")

PHOTOGRAPHS = Augmentation(crop=4, flip=True)
DIGITS = Augmentation(crop=1, flip=False)  # of 8 pixels; a mirrored digit is no digit

Arrays = Mapping[str, Any]
"""x_train, y_train, x_test, y_test, and where known class_names and person_train."""


@dataclass(frozen=True)
class Source:
    """A data set that has been found, not read."""

    read: Callable[[], Arrays]
    augmentation: Augmentation | None = None  # None: chosen by the images' size and channels
    is_quick: bool = True  # can be read in about a second, so that it may be read to be checked


@dataclass(frozen=True)
class DataSet:
    """A data set as read, found to be well formed."""

    x_train: NDArray[np.uint8]  # (n, height, width, channels)
    y_train: NDArray[np.int64]  # (n,)
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    class_names: tuple[str, ...]
    person_train: NDArray[np.str_] | None  # (n,): images of one person stay together


def find(name: str, root: Path, download: bool = True) -> Source:
    """Finds the data set that the user calls `name`; reads and downloads nothing.

    Raises:
        ValueError: if there is no such data set, file, folder or function.
    """
    if name in DATA_SETS:
        return DATA_SETS[name](root, download)
    if is_reference(name):
        function = import_object(name)
        if not callable(function):
            raise ValueError(f"data set {name!r}: expected a function, got {function!r}.")
        return Source(partial(_call, function, root), is_quick=False)
    path = next((path for path in (Path(name), root / name) if path.exists()), None)
    if path is not None and path.is_dir():
        return _folder(path)
    if path is not None and path.suffix == ".npz":
        return Source(partial(_read_npz, path))
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
    arrays = source.read()
    try:
        return _checked(arrays)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from error


def _checked(arrays: Arrays) -> DataSet:
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise ValueError(f"Expected {', '.join(REQUIRED)}; missing: {', '.join(missing)}.")
    x_train, x_test = (
        _checked_images(key, np.asarray(arrays[key])) for key in ("x_train", "x_test")
    )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            "Expected test images of the training images' height, width and channels "
            f"{x_train.shape[1:]}, got {x_test.shape[1:]}."
        )
    y_train = _checked_labels("y_train", np.asarray(arrays["y_train"]), len(x_train))
    y_test = _checked_labels("y_test", np.asarray(arrays["y_test"]), len(x_test))
    names = arrays.get("class_names")
    names = range(y_train.max() + 1) if names is None else np.asarray(names).astype(str).ravel()
    class_names = tuple(map(str, names))
    if len(class_names) < 2:
        raise ValueError(f"Expected two or more classes, got {len(class_names)}.")
    if repeated := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise ValueError(f"Expected class names that differ, got twice: {', '.join(repeated)}.")
    for key, labels in (("y_train", y_train), ("y_test", y_test)):
        if not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError(
                f"Expected {key} from 0 to {len(class_names) - 1}, for {len(class_names)} classes, "
                f"got {labels.min()} to {labels.max()}."
            )
    persons = arrays.get("person_train")
    if persons is not None:
        persons = np.asarray(persons)
        if persons.shape != y_train.shape:
            raise ValueError(
                f"Expected person_train of shape {y_train.shape}, got {persons.shape}."
            )
    return DataSet(x_train, y_train, x_test, y_test, class_names, persons)


def _checked_images(key: str, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{key}: Expected uint8 n x H x W x C, got {images.dtype} "
            f"{' x '.join(map(str, images.shape))}."
        )
    return images


def _checked_labels(key: str, labels: NDArray[Any], n: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise ValueError(
            f"{key}: Expected {n} integers, one for each image, got {labels.dtype} "
            f"of shape {labels.shape}."
        )
    return labels.astype(np.int64)


def _digits(root: Path, download: bool) -> Source:
    return Source(_read_digits, DIGITS)


def _read_digits() -> Arrays:
    from sklearn.datasets import load_digits  # half a second that other data sets need not spend

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # they come as 0..16
    return _with_test_cut(pixels, bunch.target, [str(digit) for digit in bunch.target_names])


def _with_test_cut(pixels: NDArray[np.uint8], labels: NDArray[Any], names: list[str]) -> Arrays:
    """Cuts off test images: always the same ones, whatever the seed of a trial."""
    total = round(TEST_SHARE * len(labels))
    test = draw(labels, total, np.random.default_rng(TEST_CUT_SEED))
    return {
        "x_train": pixels[~test],
        "y_train": labels[~test],
        "x_test": pixels[test],
        "y_test": labels[test],
        "class_names": names,
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
            f"There is no file {str(path)!r}, and lfw3 cannot be downloaded. Put lfw3.npz there, "
            "or name the folder where it is with --data-root."
        )
    return Source(partial(_read_npz, path), PHOTOGRAPHS)


def _read_npz(path: Path) -> Arrays:
    try:
        # Opened here because numpy leaves a damaged file open.
        with path.open("rb") as handle, np.load(handle) as file:
            return {key: file[key] for key in REQUIRED + OPTIONAL if key in file}
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


def _folder(path: Path) -> Source:
    """Sub-folders by class, or `train` and `test` that hold such sub-folders each."""
    halves = path / "train", path / "test"
    if all(half.is_dir() for half in halves):
        return Source(partial(_read_halves, *halves, class_folders(halves[0])), is_quick=False)
    return Source(partial(_read_class_folders, path, class_folders(path)), is_quick=False)


def _read_halves(train: Path, test: Path, names: list[str]) -> Arrays:
    if extra := set(class_folders(test)) - set(names):
        raise ValueError(f"{str(test)!r} has classes that train lacks: {', '.join(sorted(extra))}.")
    x_train, y_train = read_images(train, names)
    x_test, y_test = read_images(test, names)
    return {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "class_names": names,
    }


def _read_class_folders(folder: Path, names: list[str]) -> Arrays:
    return _with_test_cut(*read_images(folder, names), names)


DATA_SETS: dict[str, Callable[[Path, bool], Source]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, "CIFAR10", "cifar-10-batches-py"),
    "cifar100": partial(_cifar, "CIFAR100", "cifar-100-python"),
    "lfw3": _lfw3,
}
