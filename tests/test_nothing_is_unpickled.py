"""Whoever gets a run folder from someone else runs none of their code by reading it.

A pickle may run any code when it is read. Python tells of every global that an unpickler looks up,
and these tests listen in a process of their own.
"""

import json
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.run_folder.trials_table import read_trials
from tests.small_sweeps import SMALL

SWEEP = f"""{SMALL}
methods:
  l1_filter: {{keep_ratio: 0.5}}
  rnp: {{p: -0.05, rounds: 1, adaptation: 0, steps: 20, encoding: 8, hidden: 8}}
seeds: [0]
"""
PICKLES = (b"\x80", b"PK")  # a pickle since protocol 2; a zip, in which torch.save puts one


def unpickled(*commands: list[str]) -> list[list[str]]:
    """What a process unpickles that runs these commands, each a module and arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.audited_process", json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audited")


@pytest.fixture(scope="module")
def heard(folder: Path) -> dict[str, list[str]]:
    """What a sweep unpickled, and then each command that another process ran on its folder.

    The sweep runs as on a machine without Ray, Optuna and MLflow, and writes its report there.
    """
    (folder / "small.yaml").write_text(SWEEP)
    run_folder = str(folder / "runs" / "small")
    sweep = ["orchestrator.trial", str(folder / "small.yaml"), "--output", str(folder / "runs")]
    _, of_sweep = unpickled(["take_away", "ray", "optuna", "mlflow"], sweep)
    left = {path.name for path in (folder / "runs").rglob("*")}
    assert {"trials.csv", "report.html", "frontier.csv"} <= left and "mlflow.db" not in left
    commands = {
        "a killed driver": ["cut_last_row", f"{run_folder}/trials.csv"],
        "a sweep that is resumed": sweep,
        "its report": ["orchestrator.commands.report", run_folder],
    }
    if find_spec("onnxruntime"):
        export = ["--method", "rnp", "--export", str(folder / "shipped")]
        commands["choosing and exporting"] = ["orchestrator.choose", run_folder, *export]
    found = dict(zip(commands, unpickled(*commands.values()), strict=True))
    return {"a sweep": of_sweep, **found}


def test_a_sweep_that_is_resumed_its_report_and_its_export_unpickle_nothing(
    folder: Path, heard: dict[str, list[str]]
) -> None:
    assert not any(heard.values()), heard
    rows = read_trials(folder / "runs" / "small" / "trials.csv")
    assert list(rows["status"]) == ["completed"] * 2 and rows["trial_id"].is_unique
    if "choosing and exporting" in heard:
        assert any((folder / "shipped").iterdir())


@pytest.mark.usefixtures("heard")
def test_no_file_that_a_sweep_leaves_is_a_pickle(folder: Path) -> None:
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if path.read_bytes().startswith(PICKLES)] == []


def test_the_hook_hears_of_a_file_that_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "planted"
    path.write_bytes(pickle.dumps(Fraction(1, 3)))
    assert path.read_bytes().startswith(PICKLES)
    ((found,),) = unpickled(["unpickle", str(path)])
    assert found.startswith("fractions.Fraction at ") and "audited_process.py" in found
