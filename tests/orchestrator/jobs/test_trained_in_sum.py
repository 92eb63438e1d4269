"""What a row says was trained: all networks of a trial, and the dense one where it starts there."""

from pathlib import Path

import pandas as pd
import pytest
from small_sweeps import arguments, write

from orchestrator.commands.trial import main
from orchestrator.run_folder.logits import read_logits
from orchestrator.run_folder.trials_table import read_trials

METHODS = """
methods:
  dense: {}
  vanilla: {keep_multiplications: 0.5}
  l1_filter: {keep_multiplications: 0.5}
  cascade: {stages: [0.3, 0.5], keep_multiplications: 0.6}
"""
TRAINING, FINE_TUNING, IMAGES = 2, 1, 210  # 0.3 of 300 are for validation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    assert main(arguments(write(path, "small", METHODS), path)) == 0
    return path / "runs" / "small"


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    return read_trials(folder / "trials.csv").set_index("method")


def test_epochs_are_those_of_all_networks(rows: pd.DataFrame) -> None:
    both = TRAINING + FINE_TUNING
    expected = {"dense": both, "vanilla": both, "l1_filter": both, "cascade": 3 * both}
    assert rows["training_epochs"].to_dict() == expected
    assert (rows["epochs_spent"] == FINE_TUNING).all()


def test_multiplications_are_those_of_every_images_forward_passes(rows: pd.DataFrame) -> None:
    dense = rows["dense_multiplications"].iloc[0]
    halved = rows["multiplications"]
    expected = {
        "dense": (TRAINING + FINE_TUNING) * dense,
        "vanilla": (TRAINING + FINE_TUNING) * halved["vanilla"],
        "l1_filter": TRAINING * dense + FINE_TUNING * halved["l1_filter"],
    }
    for method, each in expected.items():
        assert rows["training_multiplications"][method] == pytest.approx(IMAGES * each), method
    share = rows["training_multiplications"]["cascade"] / (IMAGES * dense)
    assert 0.95 * 3 * 1.8 <= share <= 3 * 1.8, "three networks of at most 0.3, 0.5 and 1"


def test_every_trial_leaves_its_logits(folder: Path, rows: pd.DataFrame) -> None:
    for row in rows.itertuples():
        logits, labels = read_logits(folder / "logits" / f"{row.trial_id}.safetensors")
        assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(row.val_accuracy, abs=0.03)
        assert len(labels) == row.validation_images
