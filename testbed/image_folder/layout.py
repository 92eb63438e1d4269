"""Layout of an image folder: which files are images, of which class, and for what."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testbed.stratified import test_cut

# fmt: off
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
UNREADABLE = {
    ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".nef",
    ".npy", ".psd", ".raw", ".svg", ".xcf",
}
"""Pictures all the same, so that to pass over them would lose data. Files that end otherwise
(notes, checksums) are no pictures and are left alone."""
# fmt: on
LEFTOVERS = {"$RECYCLE.BIN", "@eaDir", "__MACOSX", "lost+found"}
"""Folders that systems leave behind; hidden files and folders are passed over too."""

OTHER_NAMES = {
    "train": ("training", "train_set", "trainset"),
    "val": ("dev", "valid", "validation", "val_set", "valset"),
    "test": ("testing", "test_set", "testset"),
}
"""What people call the sub-folders `train`, `val` and `test`."""
EXPECTED = (
    "Expected one sub-folder of images per class, or train/ with such sub-folders, and val/ and "
    "test/ beside it (each may be missing)."
)


@dataclass(frozen=True)
class Part:
    """The images for one purpose."""

    paths: tuple[str, ...]
    """Relative to the folder, ordered by class, then by name."""
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """What an image folder holds."""

    folder: Path
    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    """`train` and `test`, and `val` where the folder has one."""


def layout_of(folder: Path) -> Layout:
    """Finds the images of a folder; opens none.

    Where there is no `test/`, test images are cut off: always the same ones.

    Raises:
        ValueError: if the folder is laid out otherwise, a class has no image, or a class has files
            that are pictures of a kind that is not read; names all of them.
    """
    inside = _sub_folders(folder)
    divided = "train" in inside and bool(_sub_folders(folder / "train"))
    classes = _sub_folders(folder / "train") if divided else inside
    if misnamed := list(_misnamed(folder, inside, divided)):
        raise _refusal(folder, misnamed)
    if len(classes) < 2:
        where = "'train'" if divided else "It"
        raise _refusal(folder, [f"{where} has {len(classes)} sub-folders."])
    problems: list[str] = []
    parts = {}
    for name in [part for part in OTHER_NAMES if part in inside] if divided else [""]:
        problems += _unknown_classes(folder, name, classes) if divided else []
        found = {each: list(_images(folder, name, each, problems)) for each in classes}
        labels = [np.full(len(paths), label) for label, paths in enumerate(found.values())]
        parts[name] = Part(
            tuple(path for paths in found.values() for path in paths),
            np.concatenate([np.zeros(0, np.int64), *labels]),
        )
    if problems:
        raise _refusal(folder, problems)
    if "test" not in parts:
        whole = parts["train"] if divided else parts.pop("")
        is_test = test_cut(whole.labels)
        parts |= {"train": _chosen(whole, ~is_test), "test": _chosen(whole, is_test)}
    return Layout(folder, tuple(classes), parts)


def _refusal(folder: Path, problems: list[str]) -> ValueError:
    return ValueError(f"image folder {str(folder)!r}: {' '.join([*problems, EXPECTED])}")


def _chosen(part: Part, chosen: NDArray[np.bool_]) -> Part:
    return Part(tuple(np.array(part.paths, object)[chosen]), part.labels[chosen])


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files and what systems leave behind not."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name not in LEFTOVERS
    )


def _sub_folders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


def _misnamed(folder: Path, inside: list[str], divided: bool) -> Iterator[str]:
    """Sub-folders that hold class folders and are called nearly `train`, `val` or `test`."""
    meant = {other: name for name, others in OTHER_NAMES.items() for other in others}
    meant |= {name: name for name in OTHER_NAMES}
    for name in inside:
        right = meant.get(name.lower())
        if right in (None, name) or not _sub_folders(folder / name):
            continue
        yield f"Rename the sub-folder {name!r} to {right!r}."
    if not divided and "train" not in inside:
        for name in {"val", "test"} & {*inside}:
            if _sub_folders(folder / name):
                yield f"There is {name!r} but no 'train' beside it."


def _unknown_classes(folder: Path, part: str, classes: list[str]) -> list[str]:
    found = _sub_folders(folder / part)
    if not found:
        return [
            f"{str(folder / part)!r} has no class folders, so its labels are not known. Sort its "
            "images by class, or move it away."
        ]
    extra = sorted({*found} - {*classes})
    return [f"{part!r} has classes that train lacks: {', '.join(extra)}."] if extra else []


def _images(folder: Path, part: str, name: str, problems: list[str]) -> Iterator[str]:
    """The images of one class, relative to the folder; appends what is wrong to `problems`."""
    where = folder / part / name
    if not where.is_dir():  # test images of some classes may be missing
        if part == "val":
            problems.append(f"'val' lacks the class {name!r}.")
        return
    shown = repr(f"{part}/{name}" if part else name)
    visible = _visible(where)
    if inner := [path.name for path in visible if path.is_dir()]:
        problems.append(
            f"The class folder {shown} has a sub-folder {inner[0]!r}. Put the images of a class "
            "directly into its folder."
        )
    suffixes = Counter(path.suffix.lower() for path in visible if not path.is_dir())
    found = [path for path in visible if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    lost = {suffix: n for suffix, n in suffixes.items() if not found or suffix in UNREADABLE}
    if lost:
        kinds = ", ".join(f"{n} {suffix or 'without an ending'}" for suffix, n in lost.items())
        problems.append(
            f"The class folder {shown} has files that cannot be read: {kinds}. Convert them to "
            ".png or .jpg, or move them away."
        )
    elif not found and not inner:
        problems.append(f"The class folder {shown} is empty. Fill it or remove it.")
    yield from (path.relative_to(folder).as_posix() for path in found)
