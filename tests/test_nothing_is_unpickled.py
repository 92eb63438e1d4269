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
from pathlib import Path

import pytest

from tests.small_sweeps import SMALL

SWEEP = f"""{SMALL}
methods:
  dense: {{}}
  l1_filter: {{keep_ratio: 0.5}}
  rnp: {{p: -0.05, rounds: 1, adaptation: 0, steps: 20, encoding: 8, hidden: 8}}
seeds: [0]
confirm: {{seeds: 1}}
"""
PICKLES = (b"\x80", b"PK")  # a pickle since protocol 2; a zip, in which torch.save puts one


def unpickled(folder: Path, *commands: list[str]) -> list[str]:
    """What a process that runs these commands, module and arguments, unpickles."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.audited_process", json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    (folder / "small.yaml").write_text(SWEEP)
    assert unpickled(folder, _sweep(folder)) == []
    return folder


def _sweep(folder: Path) -> list[str]:
    return ["orchestrator.trial", str(folder / "small.yaml"), "--output", str(folder / "runs")]


def test_a_sweep_that_is_resumed_and_its_report_unpickle_nothing(runs: Path) -> None:
    folder = runs / "runs" / "small"
    rows = (folder / "trials.csv").read_text().splitlines(keepends=True)
    (folder / "trials.csv").write_text("".join(rows[:-1]))  # as if it had been killed
    assert unpickled(runs, _sweep(runs), ["orchestrator.commands.report", str(folder)]) == []
    assert len((folder / "trials.csv").read_text().splitlines()) == len(rows)


def test_choosing_and_exporting_a_network_unpickles_nothing(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder, shipped = runs / "runs" / "small", tmp_path / "shipped"
    export = ["orchestrator.choose", str(folder), "--export", str(shipped)]
    assert unpickled(runs, export) == []
    assert any(shipped.iterdir())


def test_no_file_that_a_sweep_leaves_is_a_pickle(runs: Path) -> None:
    files = [path for path in (runs / "runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if path.read_bytes().startswith(PICKLES)] == []


def test_the_hook_hears_of_a_file_that_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "planted"
    path.write_bytes(pickle.dumps(Fraction(1, 3)))
    assert path.read_bytes().startswith(PICKLES)
    (found,) = unpickled(tmp_path, ["unpickle", str(path)])
    assert found.startswith("fractions.Fraction at ") and "audited_process.py" in found
