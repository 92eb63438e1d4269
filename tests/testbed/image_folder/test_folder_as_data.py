"""What methods get of an image folder, and what the options of `data:` do to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from picture_folders import fill, save

from testbed.data import (
    Augmentation,
    DataOptions,
    augment,
    check_data,
    load_splits,
    load_test_images,
    normalise,
)


def options(path: Path, **others: Any) -> DataOptions:
    return DataOptions(name=str(path), **others)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "pets")
    return tmp_path / "pets"


def test_images_that_are_resized_are_cropped_at_random_unless_shifts_are_given(
    folder: Path,
) -> None:
    def augmentation(**others: Any) -> Augmentation:
        given = options(folder, image_size=16, **others)
        return load_splits(given, folder.parent, seed=0).augmentation

    assert augmentation() == Augmentation(0, True, resized_crop=16)
    assert augmentation(flip=False) == Augmentation(0, False, resized_crop=16)
    assert augmentation(crop=0) == Augmentation(0, True)
    assert augmentation(crop=2) == Augmentation(2, True)


def test_training_images_are_drawn_from_what_is_stored_around_them(folder: Path) -> None:
    splits = load_splits(options(folder, image_size=16), folder.parent, seed=0)
    batch, generator = splits.train[:8], torch.Generator().manual_seed(0)
    drawn = splits.augmented(batch, generator)
    expected = augment(batch.pixels_with_margin, splits.augmentation, generator.manual_seed(0))
    assert torch.equal(drawn, expected)
    assert drawn.shape == (8, *splits.input_shape) == (8, 3, 16, 16)
    plain = load_splits(options(folder, image_size=16, crop=0, flip=False), folder.parent, 0)
    assert torch.equal(plain.augmented(batch, generator), batch.pixels)


def test_a_folder_of_grey_pictures_is_not_mirrored(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / "grey" / "ab"[number % 2] / f"{number}.png", (number,) * 3)
    for image_size in (None, 8):
        given = options(tmp_path / "grey", image_size=image_size)
        splits = load_splits(given, tmp_path, seed=0)
        assert splits.input_shape[0] == 3 and not splits.augmentation.flip


def test_a_fingerprint_depends_on_size_content_and_crops(folder: Path) -> None:
    def fingerprint(**others: Any) -> str:
        return load_splits(options(folder, **others), folder.parent, seed=0).fingerprint

    variants = [{}, {"image_size": 4}, {"image_size": 5}, {"image_size": 4, "crop": 0}]
    found = {fingerprint(**variant) for variant in variants}
    save(folder / "cat" / "003.png", (255, 255, 255))
    assert len(found | {fingerprint(), fingerprint(image_size=4)}) == 6


def test_normalised_images_are_computed_slice_by_slice(folder: Path) -> None:
    splits = load_splits(options(folder, image_size=4), folder.parent, seed=0)
    inputs = splits.normalised(splits.train)
    whole = normalise(splits.train.pixels, splits.mean, splits.std)
    assert len(inputs) == len(whole) and torch.equal(inputs[3:7], whole[3:7])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 16}, "data.crop: expected fewer than the 16 pixels"),
        (
            {"normalisation": {"mean": [0.5], "std": [0.2]}},
            "data.normalisation: expected means and deviations of the images' 3 channels",
        ),
    ],
)
def test_options_are_refused_before_anything_is_decoded(
    folder: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_data(options(folder, image_size=16, **wrong), folder.parent)
    assert not (folder.parent / ".image_cache").exists()


def test_the_seed_moves_no_image_of_a_val_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / "pets" / part)
    first, second = (load_splits("pets", tmp_path, seed) for seed in (0, 1))
    assert first.fingerprint == second.fingerprint


def test_classes_are_chosen_in_every_part(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path / "pets" / part, ("cat", "dog", "eel"), n=4)
    chosen = options(tmp_path / "pets", classes=["eel", "cat"])
    splits = load_splits(chosen, tmp_path, seed=0)
    assert splits.class_names == ("eel", "cat")
    for images in (splits.train, splits.validation, load_test_images(chosen, tmp_path)):
        assert len(images) == 8
        assert torch.equal(images.pixels[:, 1, 0, 0], torch.tensor([2, 0])[images.labels])
