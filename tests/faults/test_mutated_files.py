"""Sweep files changed at random: each is accepted, or refused with messages and status 2."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disturbed import PROJECT, WHOLE
from sweep_files import SWEEP, mutated

from orchestrator.commands.sweep import main

TINY = SWEEP.replace("digits", "tiny.npz")
IN_ONE_PROCESS = range(1000, 1500 if WHOLE else 1025)
BY_COMMAND_LINE = range(2000, 2020 if WHOLE else 2001)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((40, 4, 4, 1), np.uint8), np.arange(40) % 2
    np.savez("tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


def assert_accepted_or_refused(status: int, out: str, err: str) -> None:
    if status == 0:
        assert err == ""
        assert " in " in out.splitlines()[-1]
    else:
        assert status == 2
        assert out == ""
        assert err
        assert all(line.startswith("my.yaml:") for line in err.splitlines())


def test_dry_runs_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = []
    for seed in IN_ONE_PROCESS:
        Path("my.yaml").write_text(mutated(TINY, seed))
        statuses.append(main(["my.yaml", "--dry-run"]))
        assert_accepted_or_refused(statuses[-1], *capsys.readouterr())
    assert min(statuses.count(0), statuses.count(2)) > len(statuses) // 20


def test_dry_runs_by_command_line() -> None:
    """None leaves a folder behind, so that none has come as far as a cluster."""
    for seed in BY_COMMAND_LINE:
        Path("my.yaml").write_text(mutated(TINY, seed))
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.sweep", "my.yaml", "--dry-run"],
            capture_output=True, text=True, env={"PYTHONPATH": str(PROJECT), "PATH": ""},
        )  # fmt: skip
        assert_accepted_or_refused(done.returncode, done.stdout, done.stderr)
        assert not Path("runs").exists()
