"""A full disk, a read-only one, and files that were damaged."""

import os
import random
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from disturbed import PROJECT, WHOLE, DisturbedSweep, figures

from orchestrator.commands.trial import main as trial_main

PLAIN = "orchestrator.trial"
BYS = [0.01, 0.02]
GRID = ["--set", f"methods={{dense: {{}}, 'tests.faults.methods:Fades': {{by: {{grid: {BYS}}}}}}}"]
"""For a driver without Ray."""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, step_s=0.0)
    yield disturbed
    disturbed.kill_all()


def assert_completed(rows: pd.DataFrame) -> None:
    assert list(rows["status"]) == ["completed"] * (1 + len(BYS)), list(rows["error"])
    assert rows["trial_id"].is_unique


@pytest.mark.parametrize("limit", [2_000, 5_000, 30_000, 500_000] if WHOLE else [5_000])
def test_a_full_disk_is_said_and_what_was_complete_stays(sweep: DisturbedSweep, limit: int) -> None:
    """No file may grow beyond the limit: a table, a dense network or the report is too large."""
    driver = subprocess.Popen(
        [sys.executable, "-m", PLAIN, sweep.path, "--output", sweep.folder.parent, *GRID],
        cwd=PROJECT, env=sweep.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        ),
    )  # fmt: skip
    _, errors = driver.communicate()
    assert driver.returncode == 3, errors
    assert "Cannot write: [Errno 27] File too large" in errors
    assert f"Resume with: python -m {PLAIN} {sweep.path}" in errors
    assert "Traceback" not in errors
    before = figures(sweep.rows())
    assert set(before["status"]) <= {"completed"}
    sweep.finish(*GRID, main=trial_main)
    assert_completed(sweep.rows())
    after = figures(sweep.rows())
    kept = after[after["trial_id"].isin(before["trial_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_dtype=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_said(sweep: DisturbedSweep) -> None:
    sweep.folder.parent.mkdir()
    sweep.folder.parent.chmod(0o500)
    driver = sweep.start(*GRID, module=PLAIN)
    assert_said(driver, "Permission denied")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_file_system_that_is_read_only_is_said(sweep: DisturbedSweep) -> None:
    """Both before anything is there, and where a sweep that has begun is to be resumed."""
    sweep.folder.parent.mkdir()
    for _ in range(2):
        assert_said(read_only(sweep), "Read-only file system")
        sweep.finish(*GRID, main=trial_main)
        assert_completed(sweep.rows())


def read_only(sweep: DisturbedSweep) -> subprocess.Popen[str]:
    """A driver that sees the output folder mounted read-only, as nobody else does."""
    output = str(sweep.folder.parent)
    mounted = f"mount --bind {output} {output} && mount -o remount,ro,bind {output} && exec "
    command = [sys.executable, "-m", PLAIN, str(sweep.path), "--output", output, *GRID]
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", mounted + shlex.join(command)],
        cwd=PROJECT, env=sweep.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def assert_said(driver: subprocess.Popen[str], error: str) -> None:
    printed, _ = driver.communicate()
    assert driver.returncode in (2, 3), printed
    assert error in printed
    assert "Traceback" not in printed


def test_damaged_files_are_made_again_and_change_no_figure(
    sweep: DisturbedSweep, tmp_path: Path
) -> None:
    """A trial is killed on its way; then its checkpoint and the dense network are damaged."""
    draw = random.Random(7)
    sweep.pause.write_text("0.5")
    driver = sweep.start(*GRID, module=PLAIN)
    sweep.wait_for(2, driver)
    checkpoints = sweep.folder / "checkpoints"
    done = set(sweep.rows()["trial_id"])
    begun: list[Path] = []
    while not begun and driver.poll() is None:
        begun = list(checkpoints.glob("*/*.safetensors"))
        begun = [path for path in begun if path.parent.name not in done]
    assert begun
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    dense = [*(sweep.folder.parent / "dense").glob("*.safetensors")]
    assert dense
    for path in (*begun, *dense):
        content = bytearray(path.read_bytes())
        for place in draw.sample(range(len(content)), 5):
            content[place] ^= 0xFF
        path.write_bytes(content)
    printed = sweep.finish(*GRID, main=trial_main)
    assert "is damaged" in printed
    assert "The run starts anew." in printed
    assert "It is made again." in printed
    assert_completed(sweep.rows())

    (tmp_path / "calm").mkdir()
    calm = DisturbedSweep(tmp_path / "calm")
    calm.finish(*GRID, main=trial_main)
    pd.testing.assert_frame_equal(figures(sweep.rows()), figures(calm.rows()))
