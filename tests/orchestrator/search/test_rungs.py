"""Early stopping: what a run, a search and a sweep make of its rungs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small_sweeps import ONE_WORKER

from baselines.channels.l1_filter import L1Filter
from baselines.channels.thinet import ThiNet
from baselines.channels.vanilla import Vanilla
from orchestrator.commands.sweep import main as sweep_main
from orchestrator.jobs.trial import run_trial
from orchestrator.plan import Trial, studies
from orchestrator.plan.jobs import AtRungs, TrialResult
from orchestrator.run_folder.trial_files import read_reports
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.run_folder.workplace import Workplace
from orchestrator.search.proposer import Proposer
from orchestrator.search.study_storage import open_journal
from orchestrator.search.successive_halving import (
    Arrival,
    SuccessiveHalving,
)
from orchestrator.sweep_file import EarlyStopping, Resources, load_sweep
from rnp.static_prefix import StaticPrefix
from testbed import method
from testbed.cost import count_multiplications, count_parameters
from testbed.data import DataOptions, load_splits
from testbed.training import Training, ignore

OBJECTIVES = {"val_accuracy": "maximize", "multiplications": "minimize"}
SWEEP = """
data: {name: digits, train_images: 300, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 3, batch_size: 64}
fine_tuning: {epochs: 4, learning_rate: {choice: [0.01, 0.0000001]}}
methods: {random_channels: {keep_ratio: {choice: [0.3, 0.6]}}}
early_stopping: {min_epochs: 1, reduction: 2}
search: {trials: 4, sampler: grid}
"""


def write_sweep(folder: Path) -> Path:
    path = folder / "early.yaml"
    path.write_text(SWEEP + ONE_WORKER)
    return path


def figures(accuracy: float, cost: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "multiplications": cost, "parameters": 7.0}


def test_rungs_are_kept_on_the_optuna_trials(tmp_path: Path) -> None:
    """A search that is resumed remembers who came, and answers a trial as it did."""
    sweep = load_sweep(write_sweep(tmp_path))
    (study,) = studies(sweep)
    rule = SuccessiveHalving(OBJECTIVES, 2)

    def resumed() -> Proposer:
        journal = open_journal(tmp_path / "studies.journal")
        return Proposer([study], OBJECTIVES, sweep.search, journal)

    before = resumed()
    first, second = before.ask(), before.ask()
    assert first is not None and second is not None
    assert rule.goes_on(before, study.name, 1, first.trial_id, figures(0.5, 10))
    assert not rule.goes_on(before, study.name, 1, second.trial_id, figures(0.4, 11))

    after = resumed()
    assert after.arrivals(study.name, 1) == {
        first.trial_id: Arrival({"val_accuracy": 0.5, "multiplications": 10.0}, True),
        second.trial_id: Arrival({"val_accuracy": 0.4, "multiplications": 11.0}, False),
    }
    assert not rule.goes_on(after, study.name, 1, second.trial_id, figures(0.9, 1))


def look_at(reached: list[tuple[int, dict[str, float]]], rungs: tuple[int, ...]) -> method.Judge:
    return method.Judge(rungs, lambda rung, values: reached.append((rung, dict(values))))


def test_a_run_is_looked_at_with_the_cost_and_accuracy_that_it_has_then() -> None:
    reports: list[Any] = []
    reached: list[tuple[int, dict[str, float]]] = []
    run = tiny.run(fine_tuning_epochs=5, reports=reports)
    run.judge = look_at(reached, (1, 2, 4))

    pruned = L1Filter(keep_ratio=0.5, rounds=2).prune(tiny.trained(), tiny.splits(), run)

    accuracies = {r["epoch"]: r["val_accuracy"] for r in reports if "epoch" in r}
    assert [rung for rung, _ in reached] == [1, 2, 4]
    assert [values["val_accuracy"] for _, values in reached] == [accuracies[e] for e in (1, 2, 4)]
    parameters = [values["parameters"] for _, values in reached]
    own = sum(parameter.numel() for parameter in pruned.parameters())
    assert parameters[0] == parameters[1] > parameters[2] == own, "the second round's are fewer"


@pytest.mark.parametrize(
    "options",
    [
        L1Filter(keep_ratio=0.5, rounds=2),
        ThiNet(keep_multiplications=0.4),
        ThiNet(keep_ratio=0.6, linear_layers=True),
    ],
)
def test_a_method_that_knows_its_cost_is_judged_by_it_from_the_first_look_on(
    options: L1Filter | ThiNet,
) -> None:
    reached: list[tuple[int, dict[str, float]]] = []
    run, data = tiny.run(fine_tuning_epochs=4), tiny.splits()
    dense = tiny.trained()
    before = [parameter.clone() for parameter in dense.parameters()]
    foreseen = options.foreseen(dense, data)
    assert all(map(torch.equal, before, dense.parameters()))
    run.judge = replace(look_at(reached, (1, 3)), foreseen=foreseen)

    pruned = options.prune(dense, data, run)

    cost = count_multiplications(pruned, torch.zeros(1, 2, 8, 8)).multiplications
    assert [values["multiplications"] for _, values in reached] == [cost, cost]
    assert [values["parameters"] for _, values in reached] == [count_parameters(pruned)] * 2


def test_a_trial_comes_to_its_first_rung_with_the_cost_of_its_last_network(tmp_path: Path) -> None:
    told: list[tuple[int, Mapping[str, float], TrialResult]] = []
    data = DataOptions(name="digits", train_images=100, validation_share=0.2)
    training = Training(epochs=1, batch_size=50)
    trial = Trial(
        trial_id="thinet",
        study="thinet",
        cell="all",
        method="thinet",
        options={"keep_ratio": 0.5},
        data=data,
        backbone="conv",
        backbone_options={"depth": 4, "width": 0.125},
        training=training,
        fine_tuning=training.model_copy(update={"epochs": 4}),
        seed=0,
    )
    rungs = AtRungs(
        EarlyStopping(min_epochs=1, reduction=2), False, lambda *seen: told.append(seen)
    )
    workplace = Workplace(tmp_path, tmp_path / "dense", tmp_path, Resources())

    row = run_trial(trial, load_splits(data, tmp_path, seed=0), workplace, ignore, rungs).row

    assert row["status"] == "completed", row["error"]
    assert [rung for rung, *_ in told] == [1, 2]
    for _, values, stopped in told:
        assert values["multiplications"] == stopped.row["multiplications"] == row["multiplications"]


def test_training_from_scratch_is_looked_at_at_the_same_shares_of_its_budget() -> None:
    """Two epochs of training and four of fine-tuning are one training of six epochs."""
    reports: list[Any] = []
    reached: list[tuple[int, dict[str, float]]] = []
    run = tiny.run(fine_tuning_epochs=4, reports=reports)
    run.judge = look_at(reached, (1, 2, 4))

    Vanilla(keep_ratio=0.5).prune(tiny.trained(), tiny.splits(), run)

    accuracies = {each["epoch"]: each["val_accuracy"] for each in reports if "epoch" in each}
    assert [values["val_accuracy"] for _, values in reached] == [accuracies[e] for e in (2, 3, 6)]


def test_to_be_looked_at_changes_nothing() -> None:
    def weights(judge: method.Judge | None) -> list[float]:
        run = tiny.run()
        run.judge = judge
        pruned = L1Filter(keep_ratio=0.5).prune(tiny.trained(), tiny.splits(), run)
        return [value for tensor in pruned.state_dict().values() for value in tensor.flatten()]

    assert weights(look_at([], (1, 2))) == weights(None)


def test_a_method_is_not_looked_at_while_its_network_costs_all() -> None:
    """Two of eight epochs go to random prefixes, which look alike whatever is to be kept."""
    reports: list[Any] = []
    reached: list[tuple[int, dict[str, float]]] = []
    run = tiny.run(fine_tuning_epochs=8, reports=reports)
    run.judge = look_at(reached, (1, 2, 3, 4))

    StaticPrefix(keep_multiplications=0.7).prune(tiny.trained(), tiny.splits(), run)

    dense = count_multiplications(tiny.trained(), torch.zeros(1, 2, 8, 8)).multiplications
    assert [rung for rung, _ in reached] == [3, 4]
    assert all(values["multiplications"] <= 0.7 * dense for _, values in reached)


@pytest.mark.usefixtures("two_workers")
def test_bad_trials_of_a_sweep_are_stopped_and_reported(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)

    assert sweep_main([str(path), "--output", str(tmp_path / "runs")]) == 0, "no failure"

    folder = tmp_path / "runs" / "early"
    rows = read_trials(folder / "trials.csv").set_index("trial_id")
    stopped = rows[rows["status"] == "stopped_early"]
    sweep = load_sweep(path)
    journal = open_journal(folder / "studies.journal")
    proposer = Proposer(studies(sweep), sweep.objectives, sweep.search, journal)
    (study,) = studies(sweep)
    last = {  # at the last rung that a trial came to
        trial_id: arrival
        for rung in (1, 2)
        for trial_id, arrival in proposer.arrivals(study.name, rung).items()
    }
    assert set(rows["status"]) == {"completed", "stopped_early"}
    assert set(stopped.index) == {name for name, arrival in last.items() if not arrival.goes_on}
    assert not stopped.empty
    for trial_id, row in stopped.iterrows():
        assert row["epochs_spent"] < 4
        assert row["val_accuracy"] == last[str(trial_id)].values["val_accuracy"]
        reports = read_reports(folder / "reports" / f"{trial_id}.jsonl")
        epochs = [report["epoch"] for report in reports if "val_accuracy" in report]
        assert max(epochs) == row["epochs_spent"]
        assert not (folder / "networks" / f"{trial_id}.safetensors").exists()
    on_frontier = set(read_trials(folder / "frontier.csv")["trial_id"])
    assert on_frontier
    assert not on_frontier & set(stopped.index)
    saved = (4 - stopped["epochs_spent"]).sum() / (4 * len(rows))
    report = (folder / "report.md").read_text()
    assert f"{len(stopped)} of 4 trials were stopped early" in report
    assert f"saved {100 * saved:.0f} % of the fine-tuning epochs" in report
    assert "did not complete" not in report
    assert (folder / "studies.journal").read_text().count('"stopped_at"') == len(stopped)
