"""Where images come from, and what the user is told when they are missing or malformed."""

import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from numpy.typing import NDArray
from PIL import Image

from testbed.data import Augmentation, DataOptions, check_data, load_splits, load_test_images
from testbed.data_sets import DATA_SETS


def arrays(**others: Any) -> dict[str, Any]:
    """A well-formed data set of two classes, with some of its arrays replaced."""
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": random.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(10) % 2,
        **others,
    }


SIZES = {"x_train": 40, "x_test": 10}


def message_of(name: str, root: Path, **others: Any) -> str:
    """What `load_splits` says; `check_data` must say the same."""
    options = DataOptions(name=name, **others)
    with pytest.raises(ValueError) as loading:
        load_splits(options, root, seed=0)
    with pytest.raises(ValueError) as checking:
        check_data(options, root)
    assert str(loading.value) == str(checking.value)
    return str(loading.value)


@pytest.fixture
def user_function(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


class TestNames:
    def test_an_unknown_name_gets_a_suggestion(self, tmp_path: Path) -> None:
        message = message_of("cifr10", tmp_path)
        assert "unknown data set 'cifr10'. Did you mean 'cifar10'?" in message
        assert "Known: cifar10, cifar100, digits, lfw3." in message

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "no file 'faces.npz'" in message_of("faces.npz", tmp_path)
        assert str(tmp_path / "lfw3.npz") in message_of("lfw3", tmp_path)

    def test_an_archive_is_to_be_unpacked(self, tmp_path: Path) -> None:
        (tmp_path / "pets.zip").write_bytes(b"PK")
        assert "Unpack an archive and name its folder." in message_of("pets.zip", tmp_path)

    def test_a_new_data_set_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(DATA_SETS, "more_digits", DATA_SETS["digits"])
        assert len(load_test_images("more_digits", tmp_path)) == 359


class TestNpz:
    def test_a_file_is_found_here_or_in_the_data_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.savez_compressed(tmp_path / "mine.npz", **arrays())
        assert len(load_splits("mine.npz", tmp_path, seed=0).train) == 36
        monkeypatch.chdir(tmp_path)
        assert len(load_splits("mine.npz", Path("elsewhere"), seed=0).train) == 36

    def test_classes_without_names_are_called_by_number(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mine.npz", **arrays())
        assert load_splits("mine.npz", tmp_path, seed=0).class_names == ("0", "1")

    def test_grey_images_are_not_mirrored_unless_asked(self, tmp_path: Path) -> None:
        grey = arrays()
        for key in ("x_train", "x_test"):
            grey[key] = grey[key][..., :1]
        np.savez(tmp_path / "mine.npz", **grey)
        assert load_splits("mine.npz", tmp_path, seed=0).augmentation == Augmentation(1, False)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (
                {"x_train": np.zeros((40, 8, 8), np.uint8)},
                "x_train: Expected uint8 n x H x W x C, got uint8 40 x 8 x 8.",
            ),
            (
                {"x_test": np.zeros((10, 8, 8, 3), np.float32)},
                "x_test: Expected uint8 n x H x W x C, got float32 10 x 8 x 8 x 3.",
            ),
            ({"x_test": np.zeros((0, 8, 8, 3), np.uint8)}, "got uint8 0 x 8 x 8 x 3."),
            ({"x_test": np.zeros((10, 8, 8, 1), np.uint8)}, "(8, 8, 3), got (8, 8, 1)."),
            (
                {"x_train": np.zeros((40, 3, 8, 8), np.uint8)},
                "got 40 x 3 x 8 x 8, which looks like channels first. Transpose: x_train.transpose",
            ),
            ({"x_train": np.zeros((40, 1, 9, 9), np.uint8)}, "which looks like channels first"),
            ({"x_train": np.zeros((40, 2, 5, 9), np.uint8)}, "which looks like channels first"),
            ({"x_train": np.zeros((40, 8, 8), np.uint8)}, "images[..., None]."),
            ({"x_train": np.zeros((40, 192), np.uint8)}, "images.reshape(n, H, W, C)."),
            ({"x_train": np.ones((40, 8, 8, 3))}, "(255 * images).round().astype('uint8')."),
            ({"x_train": np.full((40, 8, 8, 3), 9.0)}, "them: images.round().astype('uint8')."),
            ({"x_train": np.full((40, 8, 8, 3), -1.0)}, "to 0..255; they are from -1 to -1."),
            ({"x_train": np.zeros((40, 8, 8, 3), np.uint16)}, "(images // 257).astype('uint8')."),
            ({"y_train": np.zeros(39, int)}, "y_train: Expected 40 integers"),
            ({"y_train": np.zeros((40, 1), int)}, "of shape (40, 1). Take labels[:, 0]."),
            ({"y_train": np.eye(2, dtype=int)[np.arange(40) % 2]}, "labels.argmax(axis=1)."),
            ({"y_test": np.zeros(10)}, "y_test: Expected 10 integers, one for each image"),
            ({"y_test": np.zeros(10)}, "labels.astype(int)."),
            ({"y_train": np.array(["cat", "dog"] * 20)}, "numpy.unique(labels, return_inverse"),
            ({"y_train": np.arange(40) % 2 + 1, "y_test": np.ones(10, int)}, "0: subtract 1, if 1"),
            (
                {"y_train": np.arange(40) % 2 + 1, "class_names": ["cat", "dog"]},
                "Expected y_train from 0 to 1, for 2 classes, got 1 to 2. Labels are from 0:",
            ),
            ({"y_train": 255 * (np.arange(40) % 2)}, "from 0 without a gap: numpy.unique(labels"),
            ({"y_test": np.full(10, 2)}, "Expected y_test from 0 to 1, for 2 classes, got 2 to 2."),
            ({"y_train": np.arange(40) % 3 - 1}, "got -1 to 1."),
            ({"y_train": np.zeros(40, int)}, "Expected two or more classes, got 1."),
            ({"class_names": ["cat", "dog", "cat"]}, "names that differ, got twice: cat."),
            ({"class_names": ["cat", "dog", "eel"]}, "class 'eel' has no training image"),
            ({"class_names": np.array(["cat", None])}, "Expected arrays of numbers and strings"),
            ({"person_train": np.array(["Ann"])}, "person_train of shape (40,), got (1,)."),
        ],
    )
    def test_a_malformed_array_is_named(
        self, wrong: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "mine.npz", **arrays(**wrong))
        assert message in message_of("mine.npz", tmp_path)

    @pytest.mark.parametrize(
        "labels", [np.arange(1, 41) % 2 + 1, 3 * (np.arange(40) % 2), np.eye(40, dtype=int)[7]]
    )
    def test_other_faults_are_not_blamed_on_the_validation_share(
        self, labels: NDArray[Any], tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "mine.npz", **arrays(y_train=labels, y_test=labels[:10]))
        message = message_of("mine.npz", tmp_path)
        assert "data.validation_share" not in message.replace("validation_share=", "")

    def test_a_class_of_one_image_is_not_blamed_on_the_share_that_is_for_validation(
        self, tmp_path: Path
    ) -> None:
        labels = np.where(np.arange(40) == 7, 2, np.arange(40) % 2)
        np.savez(tmp_path / "mine.npz", **arrays(y_train=labels))
        assert "Expected two or more of each class" in message_of("mine.npz", tmp_path)
        few = message_of("mine.npz", tmp_path, train_images=39)
        assert "Take more data.train_images." in few

    def test_deep_and_flat_images_of_many_channels_are_taken(self, tmp_path: Path) -> None:
        """What merely might be channels first is not refused."""
        for shape in ((8, 8, 12), (5, 9, 7), (1, 4, 9), (8, 1, 3)):
            images = {key: np.zeros((n, *shape), np.uint8) for key, n in SIZES.items()}
            np.savez(tmp_path / "mine.npz", **arrays(**images))
            height, width, channels = shape
            found = load_splits("mine.npz", tmp_path, seed=0).input_shape
            assert found == (channels, height, width)

    def test_missing_arrays_are_named_beside_those_that_are_there(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mine.npz", x_train=arrays()["x_train"], labels=np.array([None]))
        message = message_of("mine.npz", tmp_path)
        assert "missing: y_train, x_test, y_test. There is: labels, x_train." in message

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, **arrays())
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"not a file of arrays", b""):
            path.write_bytes(damaged)
            assert f"{str(path)!r}, written by numpy.savez" in message_of("mine.npz", tmp_path)

    def test_no_code_in_a_file_is_run(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        np.savez(tmp_path / "mine.npz", **arrays(class_names=np.array([Trap()], dtype=object)))
        message_of("mine.npz", tmp_path)
        assert not (tmp_path / "sprung").exists()


class TestCifar:
    def test_an_npz_in_the_data_folder_comes_before_torchvision(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torchvision.datasets, "CIFAR10", None)
        np.savez(tmp_path / "cifar10.npz", **arrays())
        splits = load_splits("cifar10", tmp_path, seed=0)
        assert len(splits.train) == 36
        assert splits.augmentation == Augmentation(crop=4, flip=True)

    def test_torchvision_gives_what_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fake(root: str, train: bool, download: bool) -> SimpleNamespace:
            assert (root, download) == (str(tmp_path), True)
            half, found = ("train" if train else "test"), arrays()
            labels = found[f"y_{half}"].tolist()
            return SimpleNamespace(data=found[f"x_{half}"], targets=labels, classes=["cat", "dog"])

        monkeypatch.setattr(torchvision.datasets, "CIFAR100", fake)
        assert load_splits("cifar100", tmp_path, seed=0).class_names == ("cat", "dog")
        assert len(load_test_images("cifar100", tmp_path)) == 10

    def test_a_forbidden_download_says_what_to_do(self, tmp_path: Path) -> None:
        message = message_of("cifar10", tmp_path, download=False)
        assert "data.download is false" in message
        assert "--data-root" in message

    def test_a_failed_download_says_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(*args: Any, **options: Any) -> None:
            raise URLError("no route to host")

        monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
        with pytest.raises(ValueError, match=r"no route to host.*Put cifar10\.npz"):
            load_splits("cifar10", tmp_path, seed=0)

    def test_checking_downloads_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torchvision.datasets, "CIFAR10", None)
        check_data("cifar10", tmp_path)


class TestFolder:
    def write(self, path: Path, colour: int, size: tuple[int, int] = (6, 4)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (colour, 0, 0)).save(path)

    def write_classes(self, folder: Path, n: int, first: int) -> None:
        """`n` images of each of two classes, numbered by their red: cats even, dogs odd."""
        for number in range(n):
            self.write(folder / "cat" / f"{number:03}.png", first + 2 * number)
            self.write(folder / "dog" / f"{number:03}.PNG", first + 2 * number + 1)
            (folder / "dog" / "notes.txt").write_text("no image")

    def test_a_fifth_of_a_folder_is_for_the_test(self, tmp_path: Path) -> None:
        self.write_classes(tmp_path / "pets", 20, first=0)
        splits = load_splits("pets", tmp_path, seed=3)
        test_images = load_test_images("pets", tmp_path)
        assert (len(splits.train), len(splits.validation), len(test_images)) == (29, 3, 8)
        assert splits.class_names == ("cat", "dog")
        assert splits.input_shape == (3, 4, 6)
        parts = (splits.train, splits.validation, test_images)
        red = [images.pixels[:, 0, 0, 0] for images in parts]
        for images, values in zip(parts, red, strict=True):
            assert (values % 2 == images.labels).all()
        assert sorted(value for part in red for value in part.tolist()) == list(range(40))

    def test_train_and_test_folders_are_taken_as_they_are(self, tmp_path: Path) -> None:
        self.write_classes(tmp_path / "pets" / "train", 10, first=0)
        self.write_classes(tmp_path / "pets" / "test", 3, first=100)
        assert len(load_splits("pets", tmp_path, seed=0).train) == 18
        test_images = load_test_images("pets", tmp_path)
        assert sorted(test_images.pixels[:, 0, 0, 0].tolist()) == list(range(100, 106))

    def test_a_folder_without_class_folders_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pets").mkdir()
        assert "one sub-folder of images per class" in message_of("pets", tmp_path)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            ("size", "expected images of one size, got 6 x 4 and, in 'test/dog/100.png', 7 x 4."),
            ("content", "1 of its images cannot be read"),
            ("extra class", "has classes that train lacks: eel."),
        ],
    )
    def test_a_spoilt_folder_is_refused(self, spoil: str, message: str, tmp_path: Path) -> None:
        self.write_classes(tmp_path / "pets" / "train", 10, first=0)
        self.write_classes(tmp_path / "pets" / "test", 3, first=100)
        spoilt = tmp_path / "pets" / "test" / "dog" / "100.png"
        if spoil == "size":
            self.write(spoilt, 0, size=(7, 4))
        elif spoil == "content":
            spoilt.write_text("no image")
        else:
            self.write(tmp_path / "pets" / "test" / "eel" / "1.png", 0)
        with pytest.raises(ValueError, match=message):
            load_splits("pets", tmp_path, seed=0)

    def test_empty_class_folders_are_refused(self, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            (tmp_path / "pets" / name).mkdir(parents=True)
        with pytest.raises(ValueError, match="The class folder 'cat' is empty"):
            load_splits("pets", tmp_path, seed=0)


class TestFunction:
    @pytest.mark.parametrize("as_mapping", [True, False])
    def test_a_function_may_give_a_mapping_or_a_namespace(
        self, as_mapping: bool, tmp_path: Path, user_function: types.ModuleType
    ) -> None:
        def load(root: Path) -> object:
            assert root == tmp_path
            return arrays() if as_mapping else SimpleNamespace(**arrays())

        user_function.__dict__["load"] = load
        assert len(load_splits("my_data:load", tmp_path, seed=0).train) == 36

    def test_checking_imports_it_and_does_not_call_it(
        self, tmp_path: Path, user_function: types.ModuleType
    ) -> None:
        def load(root: Path) -> NDArray[Any]:
            raise AssertionError

        user_function.__dict__["load"] = load
        check_data("my_data:load", tmp_path)
        assert "unknown object 'lod'. Did you mean 'load'?" in message_of("my_data:lod", tmp_path)

    def test_what_it_gives_is_checked_as_a_file_is(
        self, tmp_path: Path, user_function: types.ModuleType
    ) -> None:
        user_function.__dict__["load"] = lambda root: None
        with pytest.raises(ValueError, match="missing: x_train, y_train, x_test, y_test"):
            load_splits("my_data:load", tmp_path, seed=0)

    def test_it_must_be_callable(self, tmp_path: Path, user_function: types.ModuleType) -> None:
        user_function.__dict__["load"] = 3
        assert "expected a function, got 3" in message_of("my_data:load", tmp_path)
