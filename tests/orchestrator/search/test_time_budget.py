"""Budgets by trials, by hours, or both."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from orchestrator.analysis.time_spent import time_spent
from orchestrator.commands.trial import main as trial_main
from orchestrator.plan import make_plan, n_tries, studies
from orchestrator.plan.dry_run import describe
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.search.proposer import Proposer
from orchestrator.search.time_budget import TimeBudget
from orchestrator.sweep_file import Search, Sweep, SweepFileError, load_sweep

SWEEP = """
data: {name: digits, train_images: 300, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 1, batch_size: 64}
methods:
  random_channels: {keep_ratio: {uniform: [0.3, 0.9]}}
  l1_filter: {keep_ratio: {uniform: [0.3, 0.9]}}
  dense: {}
"""


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sweep(folder: Path, search: str) -> Sweep:
    path = folder / "my.yaml"
    path.write_text(SWEEP + search)
    return load_sweep(path)


def test_the_first_look_starts_the_clock() -> None:
    clock = Clock()
    budget = TimeBudget(2.0, clock=clock)
    clock.now += 100

    assert not budget.is_over()
    clock.now += 7199
    assert not budget.is_over()
    clock.now += 1
    assert budget.is_over()


def test_trials_that_were_stopped_are_run_after_the_hours_too(tmp_path: Path) -> None:
    planned = sweep(tmp_path, "search: {hours: 3, sampler: random}")
    storage = InMemoryStorage()

    def driver() -> Proposer:
        return Proposer(studies(planned), planned.objectives, planned.search, storage)

    killed = driver()
    begun = [killed.ask() for _ in range(2)]
    later = driver()
    again = [later.ask(new=False) for _ in range(2)]
    assert sorted(map(str, again)) == sorted(map(str, begun))
    assert later.ask(new=False) is None
    assert later.ask() not in (*begun, None)


def test_what_earlier_drivers_spent_counts() -> None:
    clock = Clock()
    budget = TimeBudget(1.0, spent_s=3000, clock=clock)

    assert not budget.is_over()
    clock.now += 601
    assert budget.is_over()
    assert TimeBudget(1.0, spent_s=3600).is_over()


def test_without_hours_time_never_ends() -> None:
    clock = Clock()
    budget = TimeBudget(None, clock=clock)
    assert not budget.is_over()
    clock.now += 1e9
    assert not budget.is_over()


def test_hours_are_those_in_which_trials_ran() -> None:
    at = "2026-01-02T{}.000+00:00".format
    side_by_side = [(at("10:00:00"), 600), (at("10:05:00"), 600)]
    one_after_another = [(at("10:15:30"), 60)]  # half a minute later
    another_driver = [(at("23:00:00"), 100)]

    assert time_spent([]) == 0
    assert time_spent(side_by_side) == 900
    assert time_spent([*one_after_another, *side_by_side]) == 990
    assert time_spent([*side_by_side, *another_driver, *one_after_another]) == 1090


@pytest.mark.parametrize(
    ("given", "trials", "hours"),
    [
        ({}, 10, None),
        ({"trials": 3}, 3, None),
        ({"hours": 2}, None, 2),
        ({"trials": 3, "hours": 2}, 3, 2),
    ],
)
def test_ten_trials_are_the_budget_where_none_is_given(
    given: dict[str, float], trials: int | None, hours: float | None
) -> None:
    search = Search.model_validate(given)
    assert (search.trials, search.hours) == (trials, hours)


def test_by_hours_alone_every_study_goes_on_in_turn(tmp_path: Path) -> None:
    planned = sweep(tmp_path, "search: {hours: 3, sampler: random}")
    proposer = Proposer(studies(planned), planned.objectives, planned.search, InMemoryStorage())

    def one_at_a_time() -> Iterator[str]:
        for _ in range(7):
            trial = proposer.ask()
            assert trial
            proposer.tell(trial.trial_id, {"status": "failed"})
            yield trial.method

    assert [n_tries(study, planned.search) for study in studies(planned)] == [math.inf, math.inf, 1]
    methods = list(one_at_a_time())
    assert methods[:3] == ["random_channels", "l1_filter", "dense"]
    assert methods[3:] == ["random_channels", "l1_filter"] * 2
    assert load_sweep(tmp_path / "my.yaml") == planned
    (tmp_path / "resolved.yaml").write_text(planned.dump())
    assert load_sweep(tmp_path / "resolved.yaml", ["name=my"]) == planned
    described = describe(make_plan(planned))
    assert "As many trials as the hours allow in 3 studies" in described
    assert "No trial starts after 3 hours." in described


def test_a_grid_needs_its_size(tmp_path: Path) -> None:
    with pytest.raises(SweepFileError, match=r"my.yaml:9: search: a grid needs its size"):
        sweep(tmp_path, "search: {hours: 3, sampler: grid}")
    assert sweep(tmp_path, "search: {hours: 3, trials: 4, sampler: grid}").search.trials == 4


def test_the_report_says_that_the_hours_ended_the_search(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(
        SWEEP.replace("uniform: [0.3, 0.9]", "grid: [0.3, 0.6, 0.9]")
        + "fine_tuning: {epochs: 0}\nsearch: {hours: 0.000001}"
    )

    assert trial_main([str(path), "--output", str(tmp_path / "runs")]) == 0

    folder = tmp_path / "runs" / "short"
    assert len(read_trials(folder / "trials.csv")) == 1, "the one that had started"
    report = (folder / "report.md").read_text()
    assert "The search's 1e-06 hours were used up after 1 trials." in report
