"""A picture gives the pixels that a viewer shows, however it was stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_folders import photograph
from PIL import Image
from torchvision.transforms import v2

from testbed.image_folder.picture import read_picture

ORIENTATION = 0x0112  # the EXIF tag
STORED_AS = {  # orientation -> how an upright picture is turned to be stored with that tag
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

AS_GOOD_AS_CAN_BE: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 100, "subsampling": 0},
    "webp": {"lossless": True},
}


def read(path: Path, side: int | None = None) -> NDArray[np.int64]:
    pixels = read_picture(path, side)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels.astype(int)


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg", "webp"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_a_picture_is_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = photograph(tmp_path / "upright.png", 12, 8)
    turned, exif = upright, Image.Exif()
    exif[ORIENTATION] = orientation
    if (transpose := STORED_AS[orientation]) is not None:
        turned = upright.transpose(transpose)
    path = tmp_path / f"a.{ending}"
    turned.save(path, exif=exif, **AS_GOOD_AS_CAN_BE.get(ending, {}))
    tolerance = 5 if ending == "jpg" else 0
    assert np.abs(read(path) - np.asarray(upright).astype(int)).max() <= tolerance


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_grey_pictures_are_turned_too(
    tmp_path: Path, orientation: int, ending: str, bits: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    values = np.array([[0, 1, 2, 3], [100, 150, 200, 255]])
    stored = values.astype(np.uint8) if bits == 8 else (257 * values).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / f"a.{ending}", exif=exif)
    expected = values if orientation == 1 else np.rot90(values, -1)
    assert (read(tmp_path / f"a.{ending}") == expected[..., None]).all()


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 128, 129, 257], [30000, 65278, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    expected = np.round(values / 257).astype(int)
    assert (read(tmp_path / f"a.{ending}") == expected[..., None]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((3, 4), dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="Save it with 8 or 16 bits"):
        read_picture(tmp_path / "a.tiff", None)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_what_is_transparent_gets_a_white_background(
    tmp_path: Path, mode: str, ending: str
) -> None:
    grey = np.full((1, 3), 100, np.uint8)
    alpha = np.array([[0, 51, 255]], np.uint8)
    channels = [grey] * (3 if mode == "RGBA" else 1) + [alpha]
    Image.fromarray(np.stack(channels, axis=-1), mode).save(tmp_path / f"a.{ending}")
    expected = [255, 255 - 155 * 51 / 255, 100]
    assert np.abs(read(tmp_path / f"a.{ending}") - np.array(expected)[:, None]).max() <= 1


def test_a_palette_is_looked_up_with_its_transparent_entry(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / "a.png", transparency=2)
    picture.save(tmp_path / "b.gif")
    assert read(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]
    assert read(tmp_path / "b.gif").tolist() == [[[255, 0, 0], [0, 255, 0], [9, 9, 9]]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr"])
def test_other_modes_are_converted(tmp_path: Path, mode: str) -> None:
    photograph(tmp_path / "a.png", 8, 6)
    with Image.open(tmp_path / "a.png") as picture:
        converted = picture.convert(mode)
    ending = "png" if mode in ("1", "L", "RGB") else "tiff"
    converted.save(tmp_path / f"b.{ending}")
    expected = np.asarray(converted.convert("RGB")).astype(int)
    assert np.abs(read(tmp_path / f"b.{ending}") - expected).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(90, 60), (40, 70), (50, 50), (20, 11)])
def test_resizing_is_that_of_torchvision(tmp_path: Path, width: int, height: int) -> None:
    picture = photograph(tmp_path / "a.png", width, height)
    usual = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])
    expected = np.asarray(usual(picture)).astype(int)
    found = read(tmp_path / "a.png", side=32)
    assert found.shape == (32, 32, 3)
    assert np.abs(found - expected).mean() < 2  # its crop starts at a whole pixel


def test_a_large_jpeg_is_read_at_less_detail_and_looks_the_same(tmp_path: Path) -> None:
    picture = photograph(tmp_path / "a.jpg", 640, 480)
    expected = v2.functional.center_crop(v2.functional.resize(picture, [32]), [32])
    difference = np.abs(read(tmp_path / "a.jpg", side=32) - np.asarray(expected).astype(int))
    assert difference.mean() < 3
