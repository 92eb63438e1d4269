"""`python -m orchestrator.sweep`: what it prints, and its exit status."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sweep_files import SWEEP, mutated

from orchestrator.commands import sweep
from orchestrator.commands.sweep import main

TINY = SWEEP.replace("digits", "tiny.npz")
ONE_CELL = ("--set", "backbone.depth=4", "--set", "backbone.dropout=0.0")


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test here runs a sweep; in the working folder lie a sweep file and its few images."""

    def run(*arguments: object) -> int:
        raise AssertionError("a sweep was started")

    monkeypatch.setattr(sweep, "_run_sweep", run)
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((40, 4, 4, 1), np.uint8), np.arange(40) % 2
    np.savez("tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    Path("my.yaml").write_text(TINY)


def test_a_dry_run_prints_the_trials_and_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "backbone.depth={grid: [4, 6]}", "--set", "backbone.dropout=0.0"]
    assert main(["my.yaml", "--dry-run", *arguments]) == 0
    assert (
        capsys.readouterr().out
        == """\
my: val_accuracy (maximize), multiplications (minimize); sampler tpe.

Dense networks, trained first unless they are kept from before:
  conv depth=4: 20 epochs, seed 0
  conv depth=6: 20 epochs, seed 0

Trials:
  dense-depth4-s0-000
  vanilla-depth4-keep_ratio0.25-s0-000
  vanilla-depth4-keep_ratio0.5-s0-000
  vanilla-depth4-keep_ratio0.75-s0-000
  random_channels-depth4-s0-000 to -009  10 tries, keep_ratio: uniform 0.2 to 0.95
  l1_filter-depth4-s0-000 to -009        10 tries, keep_ratio: uniform 0.2 to 0.95
  magnitude-depth4-s0-000 to -009        10 tries, threshold: uniform 0.25 to 2.0
  dense-depth6-s0-000
  vanilla-depth6-keep_ratio0.25-s0-000
  vanilla-depth6-keep_ratio0.5-s0-000
  vanilla-depth6-keep_ratio0.75-s0-000
  random_channels-depth6-s0-000 to -009  10 tries, keep_ratio: uniform 0.2 to 0.95
  l1_filter-depth6-s0-000 to -009        10 tries, keep_ratio: uniform 0.2 to 0.95
  magnitude-depth6-s0-000 to -009        10 tries, threshold: uniform 0.25 to 2.0

68 trials in 14 studies, 2 dense networks. Epochs: 40 for dense networks, at most 460 for trials.
"""
    )


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    assert main(["my.yaml", "--dry-run"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.yaml", "tiny.npz"]


def test_searched_training_is_counted_with_each_trial(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "training.epochs={int: [2, 6]}", "--set", "methods={dense: {}}"]
    assert main(["my.yaml", "--dry-run", *ONE_CELL, *arguments]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (  # ten trials with 5 epochs of fine-tuning after at most 6 of training
        "10 trials in 1 study, 0 dense networks. "
        "Epochs: 0 for dense networks, at most 110 for trials."
    )


def test_the_grid_sampler_makes_no_try_twice(capsys: pytest.CaptureFixture[str]) -> None:
    methods = "methods={magnitude: {rounds: {choice: [1, 2]}}}"
    arguments = ["--set", "search.sampler=grid", "--set", methods]
    assert main(["my.yaml", "--dry-run", *ONE_CELL, *arguments]) == 0
    assert "2 trials in 1 study" in capsys.readouterr().out


def test_a_refused_sweep_exits_with_2_and_its_mistakes_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["my.yaml", "--set", "backbone.depth=5", "--set", "seeds=[a]"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "--set backbone.depth=5: backbone.depth: expected 4, 6 or 8, got 5.\n"
        "--set seeds=[a]: seeds.0: expected a whole number, got 'a'.\n"
    )


def test_a_folder_of_something_else_is_refused_with_the_ways_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("results/my").mkdir(parents=True)
    message = (
        "results/my is there, and cannot be resumed: it has no sweep.yaml.\n"
        "Give this sweep another name with --set name=..., or start afresh with --fresh, which "
        "moves the old folder aside and deletes nothing.\n"
    )
    assert main(["my.yaml", "--output", "results"]) == 2
    assert capsys.readouterr().err == message
    assert main(["my.yaml", "--output", "results", "--dry-run"]) == 0
    assert capsys.readouterr().err == "Note: " + message


def test_a_wrong_option_exits_with_2() -> None:
    for arguments in ([], ["my.yaml", "--dry"], ["my.yaml", "--set"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2


def test_mistakes_in_the_data_are_found_under_the_data_root(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--set", "data.name=mine.npz", "--data-root", str(tmp_path / "images")]
    assert main(["my.yaml", *arguments]) == 2
    assert capsys.readouterr().err == (
        "--set data.name=mine.npz: There is no file 'mine.npz', neither here nor in "
        f"'{tmp_path / 'images'}'.\n"
    )


def test_a_file_that_cannot_be_read_is_refused_without_importing_torch() -> None:
    Path("my.yaml").write_text("data: [\n")
    code = (
        "import sys; from orchestrator.sweep import main; status = main(['my.yaml']); "
        "sys.exit(status + 40 * any(name in sys.modules for name in ('torch', 'ray', 'optuna')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("my.yaml:1: not valid YAML: ")


def test_the_command_refuses_without_a_traceback() -> None:
    Path("my.yaml").write_text(TINY.replace("magnitude", "magnitud"))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.sweep", "my.yaml"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "my.yaml:10: unknown method 'magnitud'. Did you mean 'magnitude'?"
    )
    assert not Path("runs").exists()


def test_a_mutated_sweep_file_is_accepted_or_refused_with_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    statuses = []
    for seed in range(150):
        Path("my.yaml").write_text(mutated(TINY, seed))
        statuses.append(main(["my.yaml", "--dry-run"]))
        captured = capsys.readouterr()
        if statuses[-1] == 0:
            assert captured.err == ""
            assert " in " in captured.out.splitlines()[-1]
        else:
            assert captured.out == ""
            assert captured.err
            assert all(line.startswith("my.yaml:") for line in captured.err.splitlines())
    assert min(statuses.count(0), statuses.count(2)) > 20
