"""A sweep adapts a backbone once for all trials that share it; each trial is as if it ran alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_sweeps import arguments, write
from torch import Tensor

from orchestrator.commands.trial import main
from orchestrator.run_folder.trials_table import read_trials
from rnp.adaptation import Adaptation
from testbed.tensor_file import read_tensors

RNP = "rnp: {p: %s, rounds: 1, adaptation: 0.5, steps: 10, encoding: 4, hidden: 4}"
PREFIX = "static_prefix: {keep_multiplications: %s, adaptation: 0.5}"
NAMES = ("trial_id", "study", "cell")  # grids have names
TIMES = ("started_at", "duration_s", "latency")
MADE: list[Adaptation] = []


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    real = Adaptation.stage

    def counting(self: Adaptation, *given: Any) -> Mapping[str, Tensor]:
        MADE.append(self)
        return real(self, *given)

    monkeypatch.setattr(Adaptation, "stage", counting)
    # What takes seconds, and stages have no part in:
    monkeypatch.setattr("orchestrator.report.write_report", lambda folder: None)
    monkeypatch.setattr("orchestrator.driver.coordinator.to_be_tested", lambda *_: [])


def sweep(folder: Path, *methods: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = write(folder, "small", f"methods: {{{', '.join(methods)}}}\n")
    text = path.read_text().replace("train_images: 300", "train_images: 150")
    path.write_text(text.replace("fine_tuning: {epochs: 1,", "fine_tuning: {epochs: 2,"))
    return path


def ran(folder: Path, *methods: str) -> Path:
    """The run folder."""
    assert main(arguments(sweep(folder, *methods), folder)) == 0
    return folder / "runs" / "small"


def figures(folder: Path) -> list[dict[str, Any]]:
    """What each trial came to: all that says neither its name nor how long it took."""
    table = read_trials(folder / "trials.csv")
    left_out = [c for c in table if any(part in c for part in (*NAMES, *TIMES))]
    return table.drop(columns=left_out).to_dict("records")


def test_rows_networks_and_reports_of_a_sweep_are_those_of_single_trials(tmp_path: Path) -> None:
    together = ran(tmp_path / "all", RNP % "{grid: [-0.3, -0.02]}", PREFIX % "{grid: [0.7, 0.9]}")
    assert len(MADE) == 2, "one for each method"
    ids = read_trials(together / "trials.csv")["trial_id"]
    for number, single in {1: RNP % -0.02, 3: PREFIX % 0.9}.items():  # those that found theirs
        folder = ran(tmp_path / str(number), single)
        (theirs,), ours, trial_id = figures(folder), figures(together)[number], ids[number]
        differing = {k for k, v in theirs.items() if not (pd.isna(v) or ours[k] == v)}
        assert differing == set()
        assert ours["training_epochs"] == 2 + 2, "the adaptation counts in every trial"
        (file,) = (folder / "networks").iterdir()
        network, _ = read_tensors(together / "networks" / f"{trial_id}.safetensors")
        expected, _ = read_tensors(file)
        assert network.keys() == expected.keys()
        assert all(network[name].equal(tensor) for name, tensor in expected.items())
        assert reports(together, trial_id) == reports(folder, file.stem)


def reports(folder: Path, trial_id: str) -> list[dict[str, float]]:
    lines = (folder / "reports" / f"{trial_id}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "timestamp"} for line in lines]


def test_stages_lie_beside_the_dense_networks_for_later_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ran(tmp_path, PREFIX % 0.9)
    assert "first stage of static_prefix-s0-000 and others  is there" in capsys.readouterr().out
    assert len(list((folder.parent / "dense").iterdir())) == 2, "and nothing half made"
    later = [*arguments(sweep(tmp_path, PREFIX % 0.7), tmp_path), "--set", "name=later"]
    assert main(later) == 0
    assert len(MADE) == 1


def test_a_stage_that_cannot_be_made_is_in_the_rows_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Adaptation, *given: Any) -> Mapping[str, Tensor]:
        MADE.append(self)
        raise RuntimeError("diverged")

    monkeypatch.setattr(Adaptation, "stage", failing)
    path = sweep(tmp_path, RNP % "{grid: [-0.3, -0.02]}")
    assert main(arguments(path, tmp_path)) == 1
    table = read_trials(tmp_path / "runs" / "small" / "trials.csv")
    assert list(table["status"]) == ["failed"] * 2
    assert table["error"].str.contains("diverged").all()


def test_a_stage_that_was_interrupted_is_made_when_the_sweep_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Adaptation, *given: Any) -> Mapping[str, Tensor]:
        raise KeyboardInterrupt

    path = sweep(tmp_path, PREFIX % "{grid: [0.7, 0.9]}")
    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "stage", interrupted)
        assert main(arguments(path, tmp_path)) == 130
    assert main(arguments(path, tmp_path)) == 0
    assert len(MADE) == 1
    assert len(read_trials(tmp_path / "runs" / "small" / "trials.csv")) == 2
    assert {p.suffix for p in (tmp_path / "runs" / "dense").iterdir()} == {".safetensors"}
