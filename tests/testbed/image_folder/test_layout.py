"""Which files of a folder are images, of which class and for what; what is refused and how."""

from pathlib import Path

import pytest
from picture_folders import fill, save

from testbed.image_folder import layout_of


def message_of(folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        layout_of(folder)
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_class_folders_are_divided_into_training_and_test_images(tmp_path: Path) -> None:
    fill(tmp_path, ("cat", "dog"), n=10)
    layout = layout_of(tmp_path)
    assert layout.class_names == ("cat", "dog")
    train, test = layout.parts["train"], layout.parts["test"]
    assert (len(train.paths), len(test.paths)) == (16, 4)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert not {*train.paths} & {*test.paths}
    for part in (train, test):
        assert [path.startswith("dog/") for path in part.paths] == part.labels.astype(bool).tolist()


@pytest.mark.parametrize("others", [("val", "test"), ("val",), ("test",), ()])
def test_val_and_test_folders_may_be_missing(tmp_path: Path, others: tuple[str, ...]) -> None:
    fill(tmp_path / "train", n=10)
    for part in others:
        fill(tmp_path / part, n=3)
    layout = layout_of(tmp_path)
    sizes = {name: len(part.paths) for name, part in layout.parts.items()}
    expected = {"train": 20, **dict.fromkeys(others, 6)}
    if "test" not in others:
        expected |= {"train": 16, "test": 4}
    assert sizes == expected


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    fill(tmp_path, ("bus", "test", "train"))
    assert layout_of(tmp_path).class_names == ("bus", "test", "train")


def test_hidden_files_and_what_systems_leave_behind_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    before = layout_of(tmp_path)
    for leftover in (
        "__MACOSX/train/cat/._000.png",
        ".DS_Store",
        "train/.DS_Store",
        "train/__MACOSX/._x.png",
        "train/.cache/a.png",
        "train/cat/._000.png",
        "train/cat/.DS_Store",
        "train/cat/@eaDir/000.png",
        "train/cat/Thumbs.db",
        "train/cat/notes.txt",
    ):
        (tmp_path / leftover).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / leftover).write_bytes(b"x")
    after = layout_of(tmp_path)
    assert after.class_names == before.class_names
    assert {n: part.paths for n, part in after.parts.items()} == {
        n: part.paths for n, part in before.parts.items()
    }


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (("Train", "Test"), ("train", "test")),
        (("training", "testing"), ("train", "test")),
        (("train", "valid"), ("val",)),
        (("train", "validation", "TEST"), ("val", "test")),
    ],
)
def test_sub_folders_of_other_names_are_to_be_renamed(
    tmp_path: Path, found: tuple[str, ...], right: tuple[str, ...]
) -> None:
    for part in found:
        fill(tmp_path / part, n=2)
    message = message_of(tmp_path)
    for name in right:
        assert f"to '{name}'." in message
    assert "Expected one sub-folder of images per class, or train/" in message
    assert "directly into its folder" not in message


def test_val_and_test_without_train_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "val")
    fill(tmp_path / "test")
    message = message_of(tmp_path)
    assert "There is 'val' but no 'train'" in message and "There is 'test'" in message


def test_folders_within_class_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "cat", ("monday", "tuesday"))
    fill(tmp_path / "dog", ("monday",))
    message = message_of(tmp_path)
    assert "The class folder 'cat' has a sub-folder 'monday'" in message
    assert "The class folder 'dog'" in message


def test_less_than_two_classes_are_refused(tmp_path: Path) -> None:
    assert "It has 0 sub-folders." in message_of(tmp_path)
    fill(tmp_path / "train", ("cat",))
    assert "'train' has 1 sub-folders." in message_of(tmp_path)


def test_every_class_without_an_image_is_named_with_its_reason(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "fox").mkdir()
    for name in ("1.mp4", "2.mp4", "README"):
        (tmp_path / "fox" / name).write_bytes(b"x")
    message = message_of(tmp_path)
    assert "The class folder 'eel' is empty." in message
    assert "'fox' has files that cannot be read: 2 .mp4, 1 without an ending." in message
    assert "validation_share" not in message


@pytest.mark.parametrize("ending", [".heic", ".HEIC", ".dng", ".svg", ".npy"])
def test_pictures_of_a_kind_that_is_not_read_are_not_dropped(tmp_path: Path, ending: str) -> None:
    fill(tmp_path)
    for number in range(3):
        (tmp_path / "cat" / f"more{number}{ending}").write_bytes(b"x")
    assert f"cannot be read: 3 {ending.lower()}. Convert them" in message_of(tmp_path)


def test_val_must_have_every_class_and_no_other(tmp_path: Path) -> None:
    fill(tmp_path / "train", ("cat", "dog", "eel"))
    fill(tmp_path / "val", ("cat", "fox"))
    message = message_of(tmp_path)
    assert "'val' has classes that train lacks: fox." in message
    assert "'val' lacks the class 'dog'." in message and "'val' lacks the class 'eel'." in message


def test_test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    save(tmp_path / "test" / "1.png", (1, 2, 3))
    assert "has no class folders, so its labels are not known" in message_of(tmp_path)
