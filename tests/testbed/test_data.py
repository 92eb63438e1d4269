"""What methods get: which images, how many of each class, and nothing of the test images."""

import ast
import gc
import pickle
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from testbed.data import (
    Augmentation,
    DataOptions,
    Images,
    Splits,
    check_data,
    load_splits,
    load_test_images,
)

REPOSITORY = Path(__file__).parents[2]
IMAGE_FOLDER = REPOSITORY / "testbed" / "image_folder"
PACKAGES = ("orchestrator", "rnp", "baselines", "testbed", "benchmarks")


def numbered_arrays(
    train_sizes: tuple[int, ...] = (60, 30, 10), test_sizes: tuple[int, ...] = (6, 3, 1)
) -> dict[str, Any]:
    """Images that carry their own number and class; test images begin at number 200."""

    def half(sizes: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]]:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
        pixels = np.zeros((len(labels), 4, 6, 3), dtype=np.uint8)
        pixels[..., 0] = (first + np.arange(len(labels)))[:, None, None]
        pixels[..., 1] = labels[:, None, None]
        return pixels, labels

    (x_train, y_train), (x_test, y_test) = half(train_sizes, 0), half(test_sizes, 200)
    return {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "class_names": ["cat", "dog", "eel"],
    }


def numbers(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "numbered.npz"
    np.savez(path, **numbered_arrays())
    return path


def options(path: Path, **others: Any) -> DataOptions:
    return DataOptions(name=str(path), **others)


class TestWhichImages:
    def test_training_and_validation_images_are_the_training_images_once_each(
        self, npz: Path
    ) -> None:
        splits = load_splits(str(npz), npz.parent, seed=0)
        assert sorted(numbers(splits.train) + numbers(splits.validation)) == list(range(100))

    def test_images_keep_their_labels_and_orientation(self, npz: Path) -> None:
        splits = load_splits(str(npz), npz.parent, seed=0)
        for images in (splits.train, splits.validation, load_test_images(str(npz), npz.parent)):
            assert images.pixels.shape == (len(images), 3, 4, 6)
            assert images.pixels.dtype == torch.uint8
            assert images.labels.dtype == torch.int64
            assert torch.equal(images.pixels[:, 1, 2, 3].long(), images.labels)
        assert splits.input_shape == (3, 4, 6)
        assert (splits.class_names, splits.n_classes) == (("cat", "dog", "eel"), 3)

    def test_validation_takes_the_same_share_of_every_class(self, npz: Path) -> None:
        splits = load_splits(options(npz, validation_share=0.2), npz.parent, seed=0)
        assert splits.validation.labels.bincount().tolist() == [12, 6, 2]
        assert splits.train.labels.bincount().tolist() == [48, 24, 8]

    def test_the_seed_decides_which_images_are_for_validation(self, npz: Path) -> None:
        first, again, other = (
            numbers(load_splits(str(npz), npz.parent, seed).validation) for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other

    def test_a_smaller_training_set_is_stratified_and_the_same_for_every_seed(
        self, npz: Path
    ) -> None:
        small = options(npz, train_images=50, validation_share=0.2)
        used = []
        for seed in (0, 1):
            splits = load_splits(small, npz.parent, seed)
            assert splits.train.labels.bincount().tolist() == [24, 12, 4]
            assert splits.validation.labels.bincount().tolist() == [6, 3, 1]
            used.append(sorted(numbers(splits.train) + numbers(splits.validation)))
        assert used[0] == used[1]

    def test_chosen_classes_are_relabelled_in_the_order_given(self, npz: Path) -> None:
        chosen = options(npz, classes=["eel", "cat"])
        splits = load_splits(chosen, npz.parent, seed=0)
        test_images = load_test_images(chosen, npz.parent)
        assert splits.class_names == ("eel", "cat")
        for images in (splits.train, splits.validation, test_images):
            assert torch.equal(images.pixels[:, 1, 0, 0], torch.tensor([2, 0])[images.labels])
        assert len(splits.train) + len(splits.validation) == 70
        assert test_images.labels.bincount().tolist() == [1, 6]

    def test_a_number_of_classes_means_the_first_ones(self, npz: Path) -> None:
        splits = load_splits(options(npz, classes=2), npz.parent, seed=0)
        assert splits.class_names == ("cat", "dog")
        assert len(splits.train) + len(splits.validation) == 90

    def test_no_person_is_in_both_training_and_validation_images(self, tmp_path: Path) -> None:
        arrays = numbered_arrays()
        person = np.random.default_rng(1).integers(0, 40, 100)  # some in two classes
        np.savez(tmp_path / "faces.npz", **arrays, person_train=person.astype(str))
        cut = DataOptions(name="faces.npz", validation_share=0.3)
        splits = load_splits(cut, tmp_path, seed=0)
        parts = numbers(splits.train), numbers(splits.validation)
        assert not set(person[parts[0]]) & set(person[parts[1]])
        assert sorted(parts[0] + parts[1]) == list(range(100))
        assert all(splits.validation.labels.bincount() <= torch.tensor([18, 9, 3]))
        assert len(splits.validation) >= 20

    def test_digits_have_fixed_test_images_whatever_the_seed(self, tmp_path: Path) -> None:
        splits = load_splits("digits", tmp_path, seed=5)
        test_images = load_test_images("digits", tmp_path)
        assert (len(test_images), len(splits.validation), len(splits.train)) == (359, 144, 1294)
        assert splits.input_shape == (1, 8, 8)
        everything = torch.cat(
            [images.pixels for images in (splits.train, splits.validation, test_images)]
        )
        assert sorted(map(bytes, everything.flatten(1).numpy())) == sorted(all_digits())

    def test_options_that_make_no_sense_are_refused(self) -> None:
        for wrong in (
            {"validation_share": 0.0},
            {"validation_share": 1.0},
            {"train_images": 0},
            {"classes": 1},
            {"crop": -1},
            {"image_size": 0},
            {"normalisation": "cifar"},
            {"normalisation": {"mean": [0.5]}},
            {"normalisation": {"mean": [0.5], "std": [0.0]}},
            {"normalisation": {"mean": [123.7], "std": [0.2]}},
            {"normalisation": {"mean": [0.5, 0.5], "std": [0.2]}},
            {"shuffle": True},
        ):
            with pytest.raises(ValidationError):
                DataOptions(name="digits", **wrong)

    def test_class_names_that_look_like_numbers_may_be_written_as_numbers(
        self, tmp_path: Path
    ) -> None:
        chosen = DataOptions.model_validate({"name": "digits", "classes": [3, 5]})
        assert load_splits(chosen, tmp_path, seed=0).class_names == ("3", "5")

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"classes": ["cat", "dgo"]}, "unknown class 'dgo'. Did you mean 'dog'?"),
            ({"classes": ["cat", "cat"]}, "expected two or more classes that differ"),
            ({"classes": ["cat"]}, "expected two or more classes that differ"),
            ({"classes": 4}, "at most the 3 classes"),
            ({"image_size": 8}, "data.image_size: only the images of a folder are resized"),
            (
                {"normalisation": {"mean": [0.5], "std": [0.2]}},
                "data.normalisation: expected means and deviations of the images' 3 channels, got",
            ),
            ({"train_images": 101}, "at most the 100 training images"),
            ({"validation_share": 0.02}, "class 'eel' has no validation image"),
            ({"validation_share": 0.97}, "class 'eel' has no training image"),
            ({"crop": 4}, "expected fewer than the 4 pixels"),
        ],
    )
    def test_a_cut_that_cannot_be_made_says_why(
        self, wrong: dict[str, Any], message: str, npz: Path
    ) -> None:
        with pytest.raises(ValueError) as checking:
            check_data(options(npz, **wrong), npz.parent)
        with pytest.raises(ValueError) as loading:
            load_splits(options(npz, **wrong), npz.parent, seed=0)
        assert message in str(checking.value)
        assert message in str(loading.value)


def all_digits() -> Iterator[bytes]:
    from sklearn.datasets import load_digits

    for image in load_digits().images:
        yield np.round(image * 255 / 16).astype(np.uint8).tobytes()


class TestStatistics:
    def test_mean_and_std_are_those_of_the_training_images(self, tmp_path: Path) -> None:
        splits = load_splits("digits", tmp_path, seed=0)
        values = splits.train.pixels.double() / 255
        assert splits.mean == pytest.approx([values.mean().item()], rel=1e-12)
        assert splits.std == pytest.approx([values.std(correction=0).item()], rel=1e-12)

    def test_the_std_of_a_channel_that_never_varies_is_one(self, npz: Path) -> None:
        splits = load_splits(str(npz), npz.parent, seed=0)
        assert splits.mean[2] == 0
        assert splits.std[2] == 1

    def test_mean_and_std_may_be_those_that_a_network_was_trained_with(self, npz: Path) -> None:
        imagenet = load_splits(options(npz, normalisation="imagenet"), npz.parent, seed=0)
        assert imagenet.mean == (0.485, 0.456, 0.406) and imagenet.std == (0.229, 0.224, 0.225)
        given = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 1.0]}
        own = load_splits(options(npz, normalisation=given), npz.parent, seed=0)
        assert own.mean == (0.5, 0.4, 0.3) and own.std == (0.1, 0.2, 1.0)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, Augmentation(0, True)),  # an eighth of 4 pixels
            ({"crop": 2}, Augmentation(2, True)),
            ({"flip": False}, Augmentation(0, False)),
        ],
    )
    def test_augmentation_is_the_data_sets_own_unless_said_otherwise(
        self, given: dict[str, Any], expected: Augmentation, npz: Path
    ) -> None:
        assert load_splits(options(npz, **given), npz.parent, 0).augmentation == expected

    def test_digits_are_not_mirrored(self, tmp_path: Path) -> None:
        assert load_splits("digits", tmp_path, seed=0).augmentation == Augmentation(1, False)

    def test_three_equal_channels_are_grey_and_not_mirrored(self, tmp_path: Path) -> None:
        arrays = numbered_arrays()
        for key in ("x_train", "x_test"):
            arrays[key][..., 1:] = arrays[key][..., :1]
        np.savez(tmp_path / "grey.npz", **arrays)
        splits = load_splits("grey.npz", tmp_path, seed=0)
        assert splits.input_shape == (3, 4, 6) and not splits.augmentation.flip

    def test_select_is_indexing(self, npz: Path) -> None:
        images = load_splits(str(npz), npz.parent, seed=0).train
        indices = torch.tensor([5, 0, 5, 31])
        selected = images.select(indices)
        assert torch.equal(selected.pixels, images.pixels[indices])
        assert torch.equal(selected.labels, images.labels[indices])

    def test_a_fingerprint_depends_on_images_and_augmentation_and_nothing_else(
        self, npz: Path
    ) -> None:
        def fingerprint(seed: int = 0, **others: Any) -> str:
            return load_splits(options(npz, **others), npz.parent, seed).fingerprint

        variants = [{}, {"seed": 1}, {"train_images": 99}, {"classes": 2}, {"crop": 1}]
        variants += [{"normalisation": "imagenet"}]
        assert len({fingerprint(**variant) for variant in variants}) == len(variants)
        assert fingerprint() == fingerprint(download=False)

    def test_fingerprints_stay_those_of_networks_that_are_kept(self, tmp_path: Path) -> None:
        """So that these, and trials that are resumed, are found under them."""
        digits = load_splits("digits", tmp_path, seed=0).fingerprint
        assert digits.startswith("fb038784ac1fa2c2")

    def test_splits_survive_the_way_to_another_process(self, npz: Path) -> None:
        splits = load_splits(str(npz), npz.parent, seed=0)
        copy: Splits = pickle.loads(pickle.dumps(splits))
        assert copy.fingerprint == splits.fingerprint
        assert copy.train.pixels.stride() == splits.train.pixels.stride()


class TestTestImagesStayOutOfReach:
    @pytest.fixture
    def handed_out(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, weakref.ref[NDArray[Any]]]:
        """A data set that remembers, weakly, the arrays it handed out."""
        handed_out: dict[str, weakref.ref[NDArray[Any]]] = {}

        def load(root: Path) -> dict[str, Any]:
            arrays = numbered_arrays()
            for key in ("x_train", "x_test"):
                handed_out[key] = weakref.ref(arrays[key])
            return arrays

        module = types.ModuleType("numbered_source")
        module.load = load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "numbered_source", module)
        return handed_out

    def test_loading_splits_leaves_no_array_of_the_data_set_alive(
        self, handed_out: dict[str, weakref.ref[NDArray[Any]]]
    ) -> None:
        splits = load_splits("numbered_source:load", Path(), seed=0)
        gc.collect()
        assert len(splits.train) == 90
        assert sorted(handed_out) == ["x_test", "x_train"]
        assert [array() for array in handed_out.values()] == [None, None]

    def test_all_that_splits_lead_to_is_four_tensors_with_storage_of_their_own(
        self, npz: Path
    ) -> None:
        splits = load_splits(str(npz), npz.parent, seed=0)
        found = list(reachable(splits))
        tensors = [thing for thing in found if isinstance(thing, Tensor)]
        assert not [thing for thing in found if isinstance(thing, np.ndarray | types.FunctionType)]
        assert len(tensors) == 4
        for tensor in tensors:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        for images in (splits.train, splits.validation):
            assert max(numbers(images)) < 200

    def test_only_the_final_evaluation_names_the_test_images(self) -> None:
        may = {
            "load_test_images": {
                "testbed/data.py",
                "orchestrator/jobs/final_test.py",
                "benchmarks/cascade_frontier.py",  # its table is of test images, once
            },
            "data_sets": {"testbed/data.py"},
            "DataSet": {
                *(f"testbed/{module}.py" for module in ("data", "data_set", "data_sets")),
                "testbed/array_checks.py",
                "testbed/selection.py",
            },
            "image_folder": {
                *(f"testbed/{module}.py" for module in ("data", "data_set", "data_sets")),
                *(f"testbed/image_folder/{path.name}" for path in IMAGE_FOLDER.glob("*.py")),
            },
            "DATA_SETS": {"testbed/data.py", "testbed/data_sets.py"},
            "x_test": {"testbed/array_checks.py", "testbed/data_sets.py"},
        }
        sources = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
        assert len(sources) > 5
        for path in sources:
            names = names_in(path)
            for name, allowed in may.items():
                where = path.relative_to(REPOSITORY).as_posix()
                assert where in allowed or name not in names, f"{where} names {name}"


def reachable(thing: object) -> Iterator[object]:
    """All objects that `thing` leads to, classes and modules left out."""
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        current = waiting.pop()
        if id(current) in seen or isinstance(current, type | types.ModuleType):
            continue
        seen.add(id(current))
        yield current
        waiting += gc.get_referents(current)


def names_in(path: Path) -> set[str]:
    """Every name and every string of a source file, and each part of a dotted one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                found |= {name}
            case ast.alias(name=name):
                found |= set(name.split("."))
            case ast.ImportFrom(module=str(name)):
                found |= set(name.split("."))
    return found
