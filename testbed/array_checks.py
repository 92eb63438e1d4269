"""Checks of data sets that come as arrays, from .npz files and functions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.data_set import DataSet, LabelledPixels

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("class_names", "person_train")

Arrays = Mapping[str, Any]
"""x_train, y_train, x_test, y_test, and where known class_names and person_train."""


def checked_arrays(arrays: Arrays) -> DataSet:
    """The data set in these arrays.

    Raises:
        ValueError: what was expected, what came, and how to mend it.
    """
    if missing := [key for key in REQUIRED if key not in arrays]:
        found = ", ".join(sorted(map(str, arrays))) or "nothing"
        raise ValueError(
            f"Expected {', '.join(REQUIRED)}; missing: {', '.join(missing)}. There is: {found}."
        )
    x_train, x_test = (_images(key, np.asarray(arrays[key])) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            "Expected test images of the training images' height, width and channels "
            f"{x_train.shape[1:]}, got {x_test.shape[1:]}."
        )
    y_train = _labels("y_train", np.asarray(arrays["y_train"]), len(x_train))
    y_test = _labels("y_test", np.asarray(arrays["y_test"]), len(x_test))
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
                f"got {labels.min()} to {labels.max()}.{_shift(labels)}"
            )
    persons = arrays.get("person_train")
    if persons is not None:
        persons = np.asarray(persons)
        if persons.shape != y_train.shape:
            raise ValueError(
                f"Expected person_train of shape {y_train.shape}, got {persons.shape}."
            )
    train, test = LabelledPixels(x_train, y_train), LabelledPixels(x_test, y_test)
    return DataSet(train, test, class_names, person_train=persons)


def without_images(label: int, name: str, y_train: NDArray[np.int64]) -> str:
    """What to say of a class that no training image has."""
    text = f"class {name!r} has no training image: no label is {label}.{_shift(y_train)}"
    if y_train.min() > 0 or name != str(label):
        return text
    return (
        f"{text} Labels count the classes from 0 without a gap: "
        "numpy.unique(labels, return_inverse=True)[1] numbers them so."
    )


def _shift(labels: NDArray[np.int64]) -> str:
    lowest = int(labels.min())
    if lowest == 0:
        return ""
    change = f"subtract {lowest}" if lowest > 0 else f"add {-lowest}"
    return f" Labels are from 0: {change}, if {lowest} is the first class."


def _images(key: str, images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{key}: Expected uint8 n x H x W x C, got {images.dtype} "
            f"{' x '.join(map(str, images.shape))}.{_image_advice(images)}"
        )
    _, first, second, last = images.shape
    if first <= 4 < min(second, last):
        raise ValueError(
            f"{key}: Expected n x H x W x C, channels last, got "
            f"{' x '.join(map(str, images.shape))}, which looks like channels first. Transpose: "
            f"{key}.transpose(0, 2, 3, 1)."
        )
    return images


def _image_advice(images: NDArray[Any]) -> str:
    """How to mend the type of images, or their shape."""
    if images.size == 0:
        return ""
    if images.dtype == np.uint16:
        return " Scale them: (images // 257).astype('uint8')."
    if images.dtype != np.uint8:
        if images.dtype.kind not in "fiub":
            return ""
        low, high = images.min(), images.max()
        if not 0 <= low <= high <= 255:
            return f" Scale them to 0..255; they are from {low:g} to {high:g}."
        scale = "(255 * images).round()" if high <= 1 else "images.round()"
        return f" Convert them: {scale}.astype('uint8')."
    if images.ndim == 3:
        return " Add the channel of grey images: images[..., None]."
    if images.ndim == 2:
        return " Give each image its height, width and channels: images.reshape(n, H, W, C)."
    return ""


def _labels(key: str, labels: NDArray[Any], n: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise ValueError(
            f"{key}: Expected {n} integers, one for each image, got {labels.dtype} "
            f"of shape {labels.shape}.{_label_advice(labels, n)}"
        )
    return labels.astype(np.int64)


def _label_advice(labels: NDArray[Any], n: int) -> str:
    """How to mend labels of another type or shape."""
    if labels.shape == (n, 1):
        return " Take labels[:, 0]."
    if labels.ndim == 2 and len(labels) == n and labels.dtype.kind in "iufb":
        return " If they are one-hot, take labels.argmax(axis=1)."
    if labels.shape != (n,):
        return ""
    if labels.dtype.kind in "US":
        return " Number them: class_names, labels = numpy.unique(labels, return_inverse=True)."
    if labels.dtype.kind in "fb":
        return " Convert them: labels.astype(int)."
    return ""
