"""Data set as read and found to be well formed, with all its images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.image_folder import MappedPixels


@dataclass(frozen=True)
class LabelledPixels:
    """n images for one purpose."""

    pixels: NDArray[np.uint8] | MappedPixels
    """In memory (n, height, width, channels)."""
    labels: NDArray[np.int64]
    """(n,)."""


@dataclass(frozen=True)
class DataSet:
    """What `testbed.data` takes the images of methods and of the final evaluation from."""

    train: LabelledPixels
    test: LabelledPixels
    class_names: tuple[str, ...]
    validation: LabelledPixels | None = None
    """None: to be cut out of the training images."""
    person_train: NDArray[np.str_] | None = None
    """(n,): training images of one person stay together."""
