"""The shipped recipe: a pretrained network and a folder of images as a user brings them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.trials_table import read_trials
from sweeps.own_network import IMAGES, WEIGHTS, draw, network, shapes
from testbed.backbones import build_backbone
from testbed.data import DataOptions, load_splits
from testbed.training import evaluate

PROJECT = Path(__file__).parents[1]
FILE = PROJECT / "sweeps" / "own_network.yaml"


pytestmark = pytest.mark.usefixtures("recipe")


def test_the_data_set_is_the_same_each_time_and_not_told_by_brightness() -> None:
    first, again = shapes(Path("nowhere")), shapes(Path("nowhere"))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert first["x_train"].shape == (900, 16, 16, 1) and first["x_train"].dtype == np.uint8
    assert np.bincount(first["y_train"]).tolist() == [300, 300, 300]
    assert np.bincount(first["y_test"]).tolist() == [100, 100, 100]


def test_the_network_takes_images_of_any_size_and_width() -> None:
    for width in (4, 8):
        model = network((3, 20, 24), n_classes=5, width=width)
        assert model(torch.rand(2, 3, 20, 24)).shape == (2, 5)
        assert model.get_submodule("join").out_channels == 2 * width


def test_the_images_are_drawn_into_a_folder_of_class_folders_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "images"
    draw(folder)
    draw(folder)  # as by another process, at the same time
    assert [path.name for path in folder.parent.iterdir()] == ["images"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cross", "disc", "square"]
    assert {len(list((folder / name).glob("*.png"))) for name in names} == {400}
    drawn = shapes(tmp_path)
    first = np.asarray(Image.open(folder / "square" / "000.png"))
    assert np.array_equal(first, drawn["x_train"][1, :, :, 0])


def test_the_weights_fit_the_network_and_are_right_about_its_images() -> None:
    data = load_splits(DataOptions(name=str(IMAGES), validation_share=0.25), Path("data"), seed=0)
    trained = build_backbone(
        "sweeps.own_network:network", data.input_shape, data.n_classes, weights=str(WEIGHTS)
    )
    assert evaluate(trained, data.validation, data, device=torch.device("cpu")) > 0.9


def test_a_dry_run_finds_both_by_their_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    assert sweep_main([str(FILE), "--dry-run"]) == 0
    assert "sweeps.own_network:network" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["l1_filter", "thinet"])
@pytest.mark.usefixtures("no_report")
def test_methods_prune_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["fine_tuning.epochs=1", "methods.thinet.images=60"]
    quick += ["methods.l1_filter.keep_multiplications=0.5"]
    overrides = [word for setting in quick for word in ("--set", setting)]
    monkeypatch.chdir(PROJECT)
    assert trial_main([str(FILE), "--only", method, "--output", str(tmp_path), *overrides]) == 0
    (row,) = read_trials(tmp_path / "own_network" / "trials.csv").to_dict("records")
    assert row["method"] == method
    share = row["multiplications"] / row["dense_multiplications"]
    assert share == pytest.approx(0.5, rel=0.1)
    assert row["dense_val_accuracy"] > 0.9
