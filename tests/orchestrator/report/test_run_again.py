"""The command that a report gives for a trial runs that trial again, and it alone."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.commands.sweep import common_parser
from orchestrator.commands.trial import main as trial_main
from orchestrator.plan import Trial, make_plan, studies
from orchestrator.run_folder.trials_table import COLUMNS, TrialsTable, option_column, read_trials
from orchestrator.sweep_file import load_sweep
from orchestrator.sweep_file.grids_and_ranges import Range

TINY = """
data: {name: digits, train_images: 100, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: {grid: [0.125, 0.25]}}
training: {epochs: 1, batch_size: 64}
fine_tuning: {epochs: 1, learning_rate: 0.01}
methods: {dense: {}, l1_filter: {keep_ratio: {grid: [0.5]}}}
seeds: [3]
"""
CONDITIONAL = """
data: {name: digits, train_images: 300, validation_share: 0.3}
backbone:
  name: conv
  depth: {grid: [4, 6]}
  width: {choice: [0.25, 0.5], when: {depth: 4}, otherwise: 0.75}
training: {epochs: 2, batch_size: 64, momentum: {uniform: [0.5, 0.9], when: {method: magnitude}}}
fine_tuning: {epochs: 3, learning_rate: {log_uniform: [0.001, 0.1]}}
methods:
  l1_filter: {keep_ratio: {uniform: [0.2, 0.9]}}
  magnitude:
    scope: {choice: [global, layer]}
    threshold: {uniform: [0.5, 3.0], when: {scope: layer}}
    rounds: {int: [1, 3], when: {scope: layer}, otherwise: 2}
seeds: [3, 4]
confirm: {seeds: 1}
search: {trials: 4}
"""


def planned(path: Path) -> list[Trial]:
    """Of every study a trial at the lower end of its ranges and one at the upper."""

    def at(end: int) -> Any:
        def suggest(_: str, searched: Range) -> Any:
            return searched.drawn[end]

        return suggest

    return [
        study.trial(number, study.values(at(-number)))
        for study in studies(load_sweep(path))
        for number in (0, 1)
    ]


def table_of(folder: Path, trials: list[Trial], varied: list[str]) -> None:
    """Their rows of trials.csv, as a driver writes them."""
    shared = [path for path in varied if not path.startswith("methods.")]
    own = [f"{trial.method}.{name}" for trial in trials for name in trial.options]
    columns = dict.fromkeys([*COLUMNS, *own, *map(option_column, shared)])
    table = TrialsTable(folder / "trials.csv", list(columns))
    for trial in trials:
        row = {name: getattr(trial, name) for name in ("trial_id", "method", "seed", "cell")}
        row |= {f"{trial.method}.{name}": value for name, value in trial.options.items()}
        table.append(row | {option_column(path): trial.option(path) for path in shared})


def test_conditional_hyperparameters_are_in_the_command_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", "s")
    folder.mkdir(parents=True)
    Path("s.yaml").write_text(CONDITIONAL)
    sweep = load_sweep(Path("s.yaml"))
    (folder / "sweep.yaml").write_text(sweep.dump())
    trials = planned(folder / "sweep.yaml")
    scopes = {trial.options["scope"] for trial in trials if trial.method == "magnitude"}
    assert scopes == {"global", "layer"}
    table_of(folder, trials, sweep.varied)
    result = SweepResult.read(folder)
    for trial, (_, row) in zip(trials, result.trials.iterrows(), strict=True):
        words = shlex.split(result.command(row))
        assert words[:3] == ["python", "-m", "orchestrator.trial"]
        assert trial_main([*words[3:], "--dry-run"]) == 0
        assert "1 trial in 1 study" in capsys.readouterr().out
        parser = common_parser("orchestrator.trial", "")
        args = parser.parse_args([w for w in words[3:] if w not in ("--only", trial.method)])
        again = load_sweep(args.sweep_file, args.overrides).with_method(trial.method)
        (same,) = make_plan(again).plain_trials()
        names = {"trial_id", "study", "cell"}
        assert json.loads(same.model_dump_json(exclude=names)) == json.loads(
            trial.model_dump_json(exclude=names)
        )


@pytest.mark.usefixtures("no_report")
def test_the_command_of_a_trial_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(TINY)
    assert trial_main(["s.yaml", "--only", "l1_filter"]) == 0
    result = SweepResult.read(Path("runs", "s"))
    row = result.trials.iloc[1]
    assert row["cell"] == "width=0.25" and row["l1_filter.keep_ratio"] == 0.5
    words = shlex.split(result.command(row))
    assert words[:3] == ["python", "-m", "orchestrator.trial"]
    assert trial_main(words[3:]) == 0
    (folder,) = Path("runs").glob("*-again")
    (same,) = read_trials(folder / "trials.csv").to_dict("records")
    for name in ("val_accuracy", "multiplications", "seed", "dense_val_accuracy"):
        assert same[name] == row[name]
