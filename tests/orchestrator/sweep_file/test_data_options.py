"""What a sweep file says of an image folder is checked before anything is decoded."""

from pathlib import Path

import pytest
from picture_folders import fill

from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep


def load(folder: Path, data: str) -> Sweep:
    text = f"data: {{name: pets, {data}}}\n"
    text += "backbone: {name: conv}\ntraining: {epochs: 3}\nmethods: {dense: {}}\n"
    (folder / "my.yaml").write_text(text)
    return load_sweep(folder / "my.yaml", data_root=folder)


def test_a_folder_may_be_resized_and_normalised_in_several_ways(tmp_path: Path) -> None:
    fill(tmp_path / "pets")
    own = "{mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"
    sweep = load(
        tmp_path, f"image_size: {{grid: [32, 64]}}, normalisation: {{grid: [imagenet, {own}]}}"
    )
    assert sweep.data["image_size"].values == (32, 64)
    assert sweep.data["normalisation"].values[0] == "imagenet"
    assert sweep.varied == ["data.image_size", "data.normalisation"]
    assert load(tmp_path, "flip: true").data["normalisation"] == "data"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("image_size: 0", "data.image_size: expected at least 1, got 0."),
        ("image_size: 32, crop: 32", "data.crop: expected fewer than the 32 pixels"),
        ("image_size: {int: [32, 64]}", "data.image_size: data are not searched."),
        ("normalisation: imagnet", "got 'imagnet'. Did you mean 'imagenet'?"),
        (
            "normalisation: {mean: [0.5, 0.4], std: [0.2]}",
            "data.normalisation: expected as many deviations as means, got 1 and 2.",
        ),
        (
            "normalisation: {mean: [123.7], std: [58.4]}",
            "data.normalisation: expected means and deviations of values from 0 to 1, got 123.7. "
            "Divide them by 255.",
        ),
        (
            "image_size: 32, normalisation: {mean: [0.5], std: [0.2]}",
            "data.normalisation: expected means and deviations of the images' 3 channels, got 1.",
        ),
    ],
)
def test_a_mistake_in_an_option_has_its_message(tmp_path: Path, data: str, message: str) -> None:
    fill(tmp_path / "pets")
    with pytest.raises(SweepFileError) as refused:
        load(tmp_path, data)
    [problem] = refused.value.problems
    assert "my.yaml:1: " in problem and message in problem
    assert not (tmp_path / ".image_cache").exists()


def test_a_folder_laid_out_otherwise_is_refused_in_its_line(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "Training")
    with pytest.raises(SweepFileError, match=r"1: image folder .* 'Training' to 'train'"):
        load(tmp_path, "image_size: 32")
