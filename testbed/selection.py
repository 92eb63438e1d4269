"""Selection of the images of a data set that are used, and for what.

- the test images are the data set's own, or a fifth that is always the same one;
- `train_images` draws a smaller training set, the same one for every seed, so that the trials of a
  sweep differ by what the sweep says and not by the luck of a draw;
- the validation images are the data set's own, or cut out of those training images by the trial's
  seed. Where a data set says who is in its pictures (lfw3), no person is in both parts.

Each draw keeps the shares of the classes, by the largest remainder.
"""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from testbed.array_checks import without_images
from testbed.data_set import DataSet
from testbed.names import unknown
from testbed.stratified import draw

SUBSET_SEED = 0
VALIDATION_STREAM = 1  # keeps this draw apart from others that start from the trial's seed

ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # so that [3, 5] names two digits


class Statistics(BaseModel):
    """Mean and standard deviation of each channel, of values from 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[Annotated[float, Field(ge=0)], ...] = Field(description="Of each channel.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="As many as means.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"expected as many deviations as means, got {len(self.std)} and {len(self.mean)}."
            )
        if (largest := max(self.mean + self.std, default=0)) > 1:
            raise ValueError(
                f"expected means and deviations of values from 0 to 1, got {largest:g}. Divide "
                "them by 255."
            )
        return self


IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What torchvision's networks, and most others, were trained with."""


class DataOptions(BaseModel):
    """The `data:` section of a sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1,
        description="digits, cifar10, cifar100, lfw3, a .npz file, a folder with one sub-folder of "
        "images per class (or train/, val/ and test/ of such), or a function "
        "package.module:function.",
    )
    train_images: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default="all",
        description="Training images in all, those cut out for validation among them.",
    )
    classes: Annotated[int, Field(ge=2)] | list[ClassName] | Literal["all"] = Field(
        default="all", description="The first so many classes, or these, in this order."
    )
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="Of the training images, unless there is a val/."
    )
    download: bool = Field(default=True, description="Whether a missing CIFAR may be downloaded.")
    image_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="The side of the squares that a folder's images are resized to; None: as is.",
    )
    normalisation: Literal["data", "imagenet"] | Statistics = Field(
        default="data",
        description="Means and deviations: of the training images, of ImageNet, or these.",
    )
    crop: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Pixels that training images are shifted by; None: the data's, which with "
        "image_size is a random resized crop.",
    )
    flip: bool | None = Field(
        default=None,
        description="Whether half of the training images are mirrored; None: the data's.",
    )


def chosen_classes(options: DataOptions, data_set: DataSet) -> list[int]:
    """The chosen classes' labels in the data set, in the order of their new labels."""
    names = data_set.class_names
    if options.classes == "all":
        return list(range(len(names)))
    if isinstance(options.classes, int):
        if options.classes > len(names):
            raise ValueError(
                f"data.classes: expected at most the {len(names)} classes of {options.name!r}, "
                f"got {options.classes}."
            )
        return list(range(options.classes))
    for name in options.classes:
        if name not in names:
            raise ValueError("data.classes: " + unknown("class", name, names))
    if len(set(options.classes)) < max(2, len(options.classes)):
        raise ValueError(
            "data.classes: expected two or more classes that differ, got "
            f"{', '.join(options.classes) or 'none'}."
        )
    return [names.index(name) for name in options.classes]


def relabelled(labels: NDArray[np.int64], classes: list[int]) -> NDArray[np.int64]:
    """New labels, 0 for the first of the classes; -1 for images of no chosen class."""
    new_label = np.full(max(labels.max(), *classes) + 1, -1)
    new_label[classes] = np.arange(len(classes))
    return new_label[labels]


def training_rows(options: DataOptions, data_set: DataSet, classes: list[int]) -> NDArray[np.int64]:
    """Which of the data set's training images are used, for training or validation."""
    labels = relabelled(data_set.train.labels, classes)
    rows = np.flatnonzero(labels >= 0)
    for new_label, label in enumerate(classes):
        if not (labels == new_label).any():
            text = without_images(label, data_set.class_names[label], data_set.train.labels)
            raise ValueError(f"data set {options.name!r}: {text}")
    if options.train_images == "all":
        return rows
    if options.train_images > len(rows):
        raise ValueError(
            f"data.train_images: expected at most the {len(rows)} training images of the chosen "
            f"classes of {options.name!r}, got {options.train_images}."
        )
    random = np.random.default_rng(SUBSET_SEED)
    return rows[draw(labels[rows], options.train_images, random)]


def validation_cut(
    options: DataOptions,
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    persons: NDArray[np.str_] | None,
    seed: int,
) -> NDArray[np.bool_]:
    """Which of the training images used, whose labels these are, are for validation."""
    total = round(options.validation_share * len(labels))
    random = np.random.default_rng([VALIDATION_STREAM, seed])
    in_validation = draw(labels, total, random, groups=persons)
    for purpose, part in (("training", ~in_validation), ("validation", in_validation)):
        for new_label, name in enumerate(class_names):
            if (labels[part] == new_label).any():
                continue
            if (labels == new_label).sum() > 1:
                advice = "Change data.validation_share, or take more data.train_images."
            elif options.train_images != "all":
                advice = "Take more data.train_images."
            else:
                advice = "Expected two or more of each class: add some, or choose data.classes."
            raise ValueError(
                f"data set {options.name!r}: class {name!r} has no {purpose} image when "
                f"{total} of {len(labels)} training images are for validation. {advice}"
            )
    return in_validation
