"""The shipped example of a user's own network and data set."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.trials_table import read_trials
from sweeps.own_network import network, shapes

PROJECT = Path(__file__).parents[1]
FILE = PROJECT / "sweeps" / "own_network.yaml"


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


def test_a_dry_run_finds_both_by_their_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    assert sweep_main([str(FILE), "--dry-run"]) == 0
    assert "sweeps.own_network:network" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["l1_filter", "thinet"])
def test_methods_prune_it(method: str, tmp_path: Path) -> None:
    quick = ["training.epochs=3", "methods.thinet.images=60"]
    quick += ["methods.l1_filter.keep_multiplications=0.5"]
    overrides = [word for setting in quick for word in ("--set", setting)]
    assert trial_main([str(FILE), "--only", method, "--output", str(tmp_path), *overrides]) == 0
    (row,) = read_trials(tmp_path / "own_network" / "trials.csv").to_dict("records")
    assert row["method"] == method
    share = row["multiplications"] / row["dense_multiplications"]
    assert share == pytest.approx(0.5, rel=0.1)
