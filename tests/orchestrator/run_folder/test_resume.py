"""The same command again resumes a sweep, and who may do so."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sweeps import METHODS, SMALL, arguments, write

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.folder import only_driver, sweep_id
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.sweep_file import SweepFileError

PROJECT = Path(__file__).parents[3]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep of two trials has run, of which one failed."""
    folder = tmp_path_factory.mktemp("ended")
    methods = "methods: {dense: {}, 'tests.tiny_methods:FailsOnce': {}}\n"
    assert trial_main(arguments(write(folder, "small", methods), folder)) == 1
    return folder


@pytest.fixture
def finished(ended: Path, tmp_path: Path) -> Path:
    """The run folder of that sweep, a copy of the test's own."""
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "small"


def test_a_finished_sweep_that_is_run_again_changes_no_row(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    assert trial_main(arguments(tmp_path / "small.yaml", tmp_path)) == 1
    assert "Resuming" in capsys.readouterr().out
    after = files(finished)
    assert after.keys() == before.keys()
    unchanged = ("trials.csv", "sweep.yaml", "multiplications_per_class.csv", "sweep_id")
    assert all(after[finished / name] == before[finished / name] for name in unchanged)


def test_a_report_is_drawn_anew_only_if_it_is_not_of_the_trials_as_they_are(
    finished: Path, tmp_path: Path
) -> None:
    command = arguments(tmp_path / "small.yaml", tmp_path)

    def drawn_again() -> bool:
        before = (finished / "report.html").stat().st_mtime_ns
        assert trial_main(command) == 1
        return (finished / "report.html").stat().st_mtime_ns > before

    assert not drawn_again()
    (finished / "frontier.png").unlink()
    assert drawn_again()
    assert (finished / "frontier.png").exists()
    table = (finished / "trials.csv").read_text()
    (finished / "trials.csv").write_text(table.replace(",completed,0.", ",completed,0.0"))
    assert drawn_again(), "as after a driver that was killed before the report"
    assert not drawn_again()


@pytest.mark.usefixtures("no_report")
def test_failed_trials_are_tried_again_only_if_asked(finished: Path, tmp_path: Path) -> None:
    command = arguments(tmp_path / "small.yaml", tmp_path)
    assert trial_main(command) == 1
    before = read_trials(finished / "trials.csv").set_index("method")
    assert trial_main([*command, "--retry-failed"]) == 0
    rows = read_trials(finished / "trials.csv").set_index("method")
    assert sorted(rows["status"]) == ["completed", "completed"]
    assert rows.loc["dense", "started_at"] == before.loc["dense", "started_at"]


@pytest.mark.usefixtures("no_report")
def test_more_methods_are_added_to_what_is_there(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL + METHODS.replace("methods:", "methods:\n"
        "  tests.tiny_methods:FailsOnce: {}"))  # fmt: skip
    before = read_trials(finished / "trials.csv").set_index("trial_id")
    assert trial_main(arguments(tmp_path / "small.yaml", tmp_path)) == 1
    rows = read_trials(finished / "trials.csv").set_index("trial_id")
    assert len(rows) == 6
    shared = [name for name in before.columns if not name.startswith("test_")]
    assert rows.loc[before.index, shared].equals(before[shared])
    assert list(rows["l1_filter.keep_ratio"].dropna()) == [0.5]
    assert trial_main(arguments(tmp_path / "small.yaml", tmp_path)) == 1  # sweep.yaml has grown


def test_a_changed_sweep_file_is_refused_with_the_ways_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    command = [*arguments(tmp_path / "small.yaml", tmp_path), "--set", "training.epochs=3"]
    for main in (trial_main, sweep_main):
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"{finished} was begun by a sweep file that has changed since:\n"
            "  training.epochs was 2, and is 3.\n"
            "Give this sweep another name with --set name=..., or start afresh with --fresh, "
            "which moves the old folder aside and deletes nothing.\n"
        )
    assert files(finished) == before
    assert trial_main([*command, "--dry-run"]) == 0
    assert "training.epochs was 2, and is 3." in capsys.readouterr().err


@pytest.mark.usefixtures("no_report")
def test_fresh_moves_the_old_folder_aside_with_all_its_files(
    finished: Path, tmp_path: Path
) -> None:
    before = {path.relative_to(finished): content for path, content in files(finished).items()}
    identity = sweep_id(finished)
    command = [*arguments(tmp_path / "small.yaml", tmp_path), "--set", "methods={dense: {}}"]
    assert trial_main([*command, "--fresh"]) == 0
    assert len(read_trials(finished / "trials.csv")) == 1
    assert sweep_id(finished) != identity
    (aside,) = (path for path in finished.parent.glob("small.*") if path.is_dir())
    assert {path.relative_to(aside): content for path, content in files(aside).items()} == before


def test_fresh_moves_nothing_if_the_sweep_cannot_start(finished: Path, tmp_path: Path) -> None:
    command = [*arguments(tmp_path / "small.yaml", tmp_path), "--fresh"]
    assert trial_main([*command, "--set", "backbone={name: 'tests.tiny_methods:raises'}"]) == 2
    assert finished.exists()


def test_a_second_driver_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with (
        only_driver(tmp_path / "mine"),
        pytest.raises(SweepFileError, match=rf"mine is being written by process {os.getpid()} on"),
        only_driver(tmp_path / "mine"),
    ):
        pass
    with only_driver(tmp_path / "mine"), only_driver(tmp_path / "other"):
        pass


SLOW = """
methods:
  dense: {}
  tests.tiny_methods:Sleeps: {seconds: 60.0}
"""


@pytest.mark.usefixtures("no_report")
def test_a_driver_that_is_killed_lets_the_next_one_in_which_ends_the_sweep(tmp_path: Path) -> None:
    command = arguments(write(tmp_path, "slow", SLOW), tmp_path)
    folder = tmp_path / "runs" / "slow"
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.trial", *command], cwd=PROJECT,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not (folder / "asleep").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert trial_main(command) == 2  # another driver is in it
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = read_trials(folder / "trials.csv")
    assert list(before["status"]) == ["completed"]
    assert trial_main(command) == 0
    rows = read_trials(folder / "trials.csv")
    assert list(rows["status"]) == ["completed", "completed"]
    assert rows["started_at"][0] == before["started_at"][0]
    classes = (folder / "multiplications_per_class.csv").read_text().splitlines()
    assert len(set(classes)) == len(classes)
