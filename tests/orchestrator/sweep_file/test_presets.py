"""Presets: files of changes beside a sweep file."""

from pathlib import Path

import pytest

from orchestrator.commands.sweep import main
from orchestrator.sweep_file import SweepFileError, load_sweep

SWEEP = """
data: {name: digits, validation_share: 0.2}
backbone: {name: conv, depth: {grid: [4, 6]}}
training: {epochs: 3}
methods: {dense: {}, l1_filter: {keep_ratio: {grid: [0.25, 0.5]}}}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SWEEP)
    (tmp_path / "presets").mkdir()
    return path


def preset(sweep_file: Path, name: str, text: str) -> None:
    (sweep_file.parent / "presets" / f"{name}.yaml").write_text(text)


def test_a_preset_changes_what_it_names_and_the_sweeps_name(sweep_file: Path) -> None:
    preset(sweep_file, "small", "training.epochs: 1\nbackbone.depth: {grid: [4]}\nseeds: [3, 4]\n")
    same = ["training.epochs=1", "backbone.depth={grid: [4]}", "seeds=[3, 4]", "name=mine_small"]
    assert load_sweep(sweep_file, presets=["small"]) == load_sweep(sweep_file, same)


def test_later_presets_and_then_set_have_the_last_word(sweep_file: Path) -> None:
    preset(
        sweep_file, "small", "training.epochs: 1\ntraining.batch_size: 8\ntraining.momentum: 0.5"
    )
    preset(sweep_file, "wide", "training.batch_size: 16\ntraining.momentum: 0.6")
    sweep = load_sweep(sweep_file, ["training.momentum=0.7"], presets=["small", "wide"])
    found = [sweep.training[name] for name in ("epochs", "batch_size", "momentum")]
    assert found == [1, 16, 0.7]


def test_a_preset_that_is_missing_is_refused_with_those_that_are_there(sweep_file: Path) -> None:
    preset(sweep_file, "small", "training.epochs: 1")
    with pytest.raises(SweepFileError, match=r"no preset 'smal'\. Known: small\."):
        load_sweep(sweep_file, presets=["smal"])


@pytest.mark.parametrize("text", ["- 3", "just words", "", "{"])
def test_a_preset_that_holds_anything_else_is_refused(sweep_file: Path, text: str) -> None:
    preset(sweep_file, "odd", text)
    with pytest.raises(SweepFileError, match=r"odd\.yaml"):
        load_sweep(sweep_file, presets=["odd"])


def test_a_mistake_in_a_preset_is_told_as_the_presets(
    sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset(sweep_file, "small", "training.epoch: 1")
    assert main([str(sweep_file), "--preset", "small", "--dry-run"]) == 2
    assert "--preset small: training.epoch" in capsys.readouterr().err
