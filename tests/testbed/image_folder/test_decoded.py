"""A folder is decoded once, into memory-mapped files that all processes share."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from file_size import files_of_at_most
from picture_folders import fill, photograph, save

from testbed.data import DataOptions, Images, load_splits, load_test_images
from testbed.image_folder import decode, decoded, layout_of, picture
from testbed.image_folder.decoded import Decoded

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all pictures that are read meanwhile."""
    names: list[str] = []

    def counting(path: Path, side: int | None) -> np.ndarray:
        names.append(path.name)
        return picture.read_picture(path, side)

    monkeypatch.setattr(decoded, "read_picture", counting)
    return names


def decode_folder(folder: Path, image_size: int | None = None) -> dict[str, Decoded]:
    return decode(layout_of(folder), image_size, folder.parent / "cache")


def test_pixels_are_memory_mapped_in_the_order_of_the_layout(tmp_path: Path) -> None:
    fill(tmp_path / "pets")
    parts = layout_of(tmp_path / "pets").parts
    for name, found in decode_folder(tmp_path / "pets").items():
        assert isinstance(found.pixels, np.memmap) and not found.pixels.flags.writeable
        assert found.tensor().data_ptr() == found.pixels.ctypes.data
        assert found.pixels.shape == (len(parts[name].paths), 4, 6, 3)
        assert found.pixels[:, 2, 3, 1].tolist() == parts[name].labels.tolist()


def test_what_is_known_of_images_is_that_of_their_pixels(tmp_path: Path) -> None:
    photograph(tmp_path / "pets" / "train" / "cat" / "0.png", 9, 7)
    save(tmp_path / "pets" / "train" / "cat" / "1.png", (7, 7, 7), (9, 7))
    save(tmp_path / "pets" / "train" / "dog" / "0.png", (7, 7, 8), (9, 7))
    fill(tmp_path / "pets" / "test", n=1)
    found = decode_folder(tmp_path / "pets", image_size=6)["train"]
    pixels = found.pixels.astype(int)
    assert found.pixels.shape == (3, 7, 7, 3)  # 6 * 256 / 224
    assert found.facts["in_colour"].tolist() == [True, False, True]
    assert (found.facts["sums"][:, 0] == pixels.sum(axis=(1, 2))).all()
    assert (found.facts["sums"][:, 1] == (pixels**2).sum(axis=(1, 2))).all()
    assert len({digest.tobytes() for digest in found.facts["digest"]}) == 3


def test_a_folder_is_decoded_once(tmp_path: Path, reads: list[str]) -> None:
    fill(tmp_path / "pets", n=5)
    decode_folder(tmp_path / "pets", image_size=4)
    assert len(reads) == 10
    decode_folder(tmp_path / "pets", image_size=4)
    assert len(reads) == 10
    decode_folder(tmp_path / "pets", image_size=8)
    assert len(reads) == 20


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer", "renamed"])
def test_a_changed_folder_is_decoded_again(tmp_path: Path, reads: list[str], change: str) -> None:
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test", n=2)
    before = decode_folder(tmp_path / "pets", image_size=4)["train"]
    reads.clear()
    path = tmp_path / "pets" / "train" / "cat" / "003.png"
    if change == "content":
        save(path, (250, 0, 0))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "more":
        save(path.with_name("new.png"), (1, 2, 3))
    elif change == "fewer":
        path.unlink()
    else:
        path.rename(path.with_name("new.png"))
    after = decode_folder(tmp_path / "pets", image_size=4)["train"]
    assert len(reads) == len(after.pixels) == 20 + (change == "more") - (change == "fewer")
    assert (after.pixels[3, 0, 0, 0] == 250) == (change == "content")
    assert before.pixels[3, 0, 0, 0] == 3  # of processes that have it open


def test_two_processes_that_start_at_once_decode_a_folder_once(tmp_path: Path) -> None:
    fill(tmp_path / "pets", n=30)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from testbed.image_folder import decode, decoded, layout_of, picture\n"
        "names = []\n"
        "def slowly(path, side):\n"
        "    names.append(path); time.sleep(0.02); return picture.read_picture(path, side)\n"
        "decoded.read_picture = slowly\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "found = decode(layout_of(Path('pets')), 4, Path('cache'))\n"
        "print(len(names), sum(len(part.pixels) for part in found.values()))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    said = [process.communicate("\n", timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(read) for read, _ in said) in ([0, 60], [12, 48])  # a part each, at most
    assert [int(found) for _, found in said] == [60, 60]
    assert {path.is_dir() for path in (tmp_path / "cache").iterdir()} == {True}


def test_what_a_killed_process_left_does_no_harm(tmp_path: Path) -> None:
    fill(tmp_path / "pets.v2")
    place = decode_folder(tmp_path / "pets.v2")["train"].place
    partial = place.with_name(place.name + ".partial")
    place.rename(partial)
    (partial / "pixels.npy").write_bytes(b"half")
    assert len(decode_folder(tmp_path / "pets.v2")["train"].pixels) == 16
    assert place.exists() and not partial.exists()


def test_all_broken_images_are_named_at_once_and_nothing_is_kept(tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    fill(pets / "train")
    fill(pets / "test", n=3)
    whole = (pets / "train" / "cat" / "001.png").read_bytes()
    (pets / "train" / "cat" / "001.png").write_bytes(whole[: len(whole) // 2])
    (pets / "train" / "cat" / "005.png").write_text("no picture")
    (pets / "test" / "dog" / "000.png").write_bytes(b"")
    (pets / "test" / "dog" / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match="4 of its images cannot be read") as refused:
        decode_folder(pets, image_size=4)
    named = [line.strip().partition(":")[0] for line in str(refused.value).splitlines()[1:]]
    assert named == [
        "test/dog/000.png",
        "test/dog/lost.png",
        "train/cat/001.png",
        "train/cat/005.png",
    ]
    assert not [*(tmp_path / "cache").glob("*/*")]


def test_images_of_several_sizes_need_an_image_size(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "train", n=3)
    fill(tmp_path / "pets" / "test", n=3)
    save(tmp_path / "pets" / "test" / "dog" / "002.png", (1, 2, 3), size=(9, 5))
    with pytest.raises(ValueError, match=r"6 x 4 and, in 'test/dog/002.png', 9 x 5.*image_size"):
        decode_folder(tmp_path / "pets")
    assert decode_folder(tmp_path / "pets", image_size=4)["test"].shape == (5, 5, 3)


def test_a_full_disk_is_said_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "pets")
    with files_of_at_most(3000), pytest.raises(OSError, match="File too large"):
        decode_folder(tmp_path / "pets", image_size=14)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(ValueError, match=r"Expected 0\.0 GB of free disk.*--data-root"):
        decode_folder(tmp_path / "pets", image_size=14)
    assert not [*(tmp_path / "cache").glob("*/*")]


class TestAsImages:
    @pytest.fixture(params=["val", "no val"])
    def options(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataOptions]:
        fill(tmp_path / "pets" / "train", n=20)
        fill(tmp_path / "pets" / "test", n=2, first=100)
        if request.param == "val":
            fill(tmp_path / "pets" / "val", n=3, first=200)
        yield DataOptions(name=str(tmp_path / "pets"), image_size=7)

    def test_images_are_read_where_they_are_asked_for(
        self, options: DataOptions, tmp_path: Path
    ) -> None:
        splits = load_splits(options, tmp_path, seed=0)
        parts = splits.train, splits.validation, load_test_images(options, tmp_path)
        own = (tmp_path / "pets" / "val").is_dir()
        assert [len(part) for part in parts] == ([40, 6, 4] if own else [36, 4, 4])
        for part in parts:
            assert part.shape == (len(part), 3, 7, 7) == tuple(part.pixels.shape)
            assert part.pixels_with_margin.shape == (len(part), 3, 8, 8)
            assert torch.equal(part.pixels, part.pixels_with_margin[:, :, :7, :7])
            assert torch.equal(part.pixels[:, 1, 3, 3].long(), part.labels)
        numbers = [part.pixels[:, 0, 0, 0].tolist() for part in parts]
        assert sorted(numbers[2]) == [100, 101, 102, 103]
        training = [*range(40)] + [*range(200, 206)] * bool(own)
        assert sorted(numbers[0] + numbers[1]) == training
        if own:
            assert sorted(numbers[1]) == [*range(200, 206)]

    def test_a_slice_of_neighbours_is_not_copied(
        self, options: DataOptions, tmp_path: Path
    ) -> None:
        images = load_splits(options, tmp_path, seed=0).train
        whole = images.source.decoded.tensor()  # type: ignore[attr-defined]
        rows = images.source.rows  # type: ignore[attr-defined]
        start = next(i for i in range(len(rows) - 1) if rows[i] + 1 == rows[i + 1])
        neighbours = images[start : start + 2].pixels
        first, last = whole.data_ptr(), whole.data_ptr() + whole.nbytes
        assert first <= neighbours.data_ptr() < last
        assert torch.equal(neighbours, images.pixels[start : start + 2])

    def test_parts_of_images_are_those_of_their_pixels(
        self, options: DataOptions, tmp_path: Path
    ) -> None:
        images = load_splits(options, tmp_path, seed=0).train
        in_memory = Images(images.pixels.clone(), images.labels)
        chosen = torch.tensor([5, 0, 5, 31])
        for part in (lambda i: i.select(chosen), lambda i: i[3:9], lambda i: i.select(chosen)[1:]):
            assert torch.equal(part(images).pixels, part(in_memory).pixels)
            assert torch.equal(part(images).labels, part(in_memory).labels)
        batches = [batch.pixels for batch in images.batches(8)]
        assert [len(batch) for batch in batches] == [8] * (len(images) // 8) + [4] * (
            len(images) % 8 > 0
        )
        assert torch.equal(torch.cat(batches), in_memory.pixels)

    def test_statistics_and_fingerprint_read_no_pixel(
        self, options: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Decoded, "tensor", None)
        splits = load_splits(options, tmp_path, seed=0)
        assert len(splits.fingerprint) == 64
        monkeypatch.undo()
        values = splits.train.pixels_with_margin.double() / 255
        assert splits.mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
        deviations = values.std(dim=(0, 2, 3), correction=0).tolist()
        assert splits.std == pytest.approx([d or 1.0 for d in deviations], rel=1e-9)

    def test_pickled_images_are_a_path_and_not_their_pixels(
        self, options: DataOptions, tmp_path: Path, reads: list[str]
    ) -> None:
        splits = load_splits(options, tmp_path, seed=0)
        reads.clear()
        content = pickle.dumps(splits)
        assert splits.train.pixels[:8].numpy().tobytes() not in content
        copy = pickle.loads(content)
        assert torch.equal(copy.train.pixels, splits.train.pixels)
        assert copy.fingerprint == splits.fingerprint
        assert copy.train.source.decoded.place == splits.train.source.decoded.place  # type: ignore[attr-defined]
        assert not reads

    def test_another_machine_decodes_the_folder_for_itself(
        self, options: DataOptions, tmp_path: Path
    ) -> None:
        splits = load_splits(options, tmp_path, seed=0)
        pixels, content = splits.train.pixels.clone(), pickle.dumps(splits.train)
        shutil.rmtree(tmp_path / ".image_cache")
        for path in (tmp_path / "pets").rglob("*.png"):
            os.utime(path, ns=(5, 5))  # as a copy may have
        assert torch.equal(pickle.loads(content).pixels, pixels)
        shutil.rmtree(tmp_path / ".image_cache")
        save(tmp_path / "pets" / "train" / "cat" / "000.png", (255, 255, 255))
        with pytest.raises(ValueError, match="has other images on this machine"):
            pickle.loads(content)
