"""The best network at each budget, against brute force and cases worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.analysis.asked_budget import asked_budgets
from orchestrator.analysis.contender import Limits, contenders
from orchestrator.analysis.decision import budgets_of, decisions, headline_decisions
from tests.report_rows import CONFIRMED, DENSE, SMALL, again, result_of, trial
from tests.trial_points import trials


def methods(**values: Any) -> dict[str, Any]:
    return {"methods": {name: {"keep_multiplications": value} for name, value in values.items()}}


@pytest.mark.parametrize("seed", range(5))
def test_the_best_within_a_budget_is_the_most_accurate_of_all_within_it(seed: int) -> None:
    accuracy, cost = np.random.default_rng(seed).random((2, 60)).round(3)
    names = ["a", "b", "c"] * 20
    frame = trials(list(zip(accuracy, 100 * cost, strict=True)), method=names)
    for budget in (0.2, 0.5, 0.8):
        within = [value for value, own in zip(accuracy, cost, strict=True) if own < budget + 0.005]
        found = contenders(frame, Limits(share=budget))
        assert found[0].accuracy == max(within)
        for each in found:
            own = [
                value
                for value, c, name in zip(accuracy, cost, names, strict=True)
                if name == each.method and c < budget + 0.005
            ]
            assert each.accuracy == max(own)


@pytest.mark.parametrize(("share", "within"), [(0.5, 1), (0.5005, 1), (0.5049, 1), (0.506, 0)])
def test_a_network_is_within_a_budget_if_it_is_so_as_written(share: float, within: int) -> None:
    frame = trials([(0.8, 100 * share)], latency_ms=10 * share)
    assert len(contenders(frame, Limits(share=0.5))) == within
    assert len(contenders(frame, Limits(latency_ratio=0.5))) == within


def test_a_share_below_one_percent_is_not_rounded_away() -> None:
    assert contenders(trials([(0.8, 0.4)]), Limits(share=0.003)) == []


def test_absolute_limits_are_compared_in_three_figures() -> None:
    frame = trials([(0.8, 50.04)])
    assert len(contenders(frame, Limits(multiplications=50))) == 1
    assert len(contenders(trials([(0.8, 50.06)]), Limits(multiplications=50))) == 0


def test_every_budget_that_the_sweep_file_names_is_answered() -> None:
    sweep = methods(
        a=0.7, b={"grid": [0.3, 0.7, 1.0]}, c={"choice": [0.6, None]}, d={"uniform": [0.1, 0.2]}
    )
    assert asked_budgets(sweep) == (0.3, 0.6, 0.7)
    assert budgets_of(sweep) == (0.25, 0.3, 0.5, 0.6, 0.7, 0.75)
    assert budgets_of({"methods": {"dense": {}, "x": None}}) == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    ("asked", "shares", "headline"),
    [
        ({}, [0.2, 0.7], 0.5),
        ({"a": 0.7}, [0.2, 0.7], 0.7),  # the smallest asked for
        ({"a": {"grid": [0.3, 0.7]}}, [0.3, 0.7], 0.3),
        ({"a": {"grid": [0.3, 0.6]}}, [0.3, 0.6], 0.6),
        ({"a": 0.7}, [0.73], 0.75),  # missed, so that nothing is at 70 %
        ({"a": {"uniform": [0.6, 0.9]}}, [0.62, 0.8], 0.75),
        ({"a": 0.5}, [0.8], None),
    ],
)
def test_the_headline_is_about_the_budget_nearest_to_a_half(
    tmp_path: Path, asked: dict[str, Any], shares: list[float], headline: float | None
) -> None:
    result = result_of(tmp_path, [trial("l1_filter", 0.5 + s / 5, s) for s in shares])
    sweep = methods(**asked) if asked else {"methods": {"l1_filter": {}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**result.sweep, **sweep}))
    result = type(result).read(tmp_path)
    first = headline_decisions(decisions(result), result.sweep)
    assert [each.budget for each in first] == ([] if headline is None else [headline])


def test_confirmed_figures_decide_where_there_are_any(tmp_path: Path) -> None:
    before = {each.budget: each.best for each in decisions(result_of(tmp_path / "a", SMALL))}
    after = {each.budget: each.best for each in decisions(result_of(tmp_path / "b", CONFIRMED))}
    assert before[0.5].trial_id == "l1_filter-006" and not before[0.5].confirmed
    assert after[0.5].trial_id == "vanilla-002" and after[0.5].confirmed
    assert after[0.25].trial_id == "l1_filter-005" and after[0.25].accuracy == 0.99


def test_a_confirmation_that_costs_more_than_its_trial_is_judged_by_its_own_cost(
    tmp_path: Path,
) -> None:
    dearer = {"test_multiplications": 0.6 * DENSE}
    rows = [*SMALL, again(0, 1, 0.9), again(6, 1, 0.85, **dearer), again(4, 1, 0.8)]
    found = {each.budget: each.best for each in decisions(result_of(tmp_path, rows))}
    assert found[0.75].trial_id == "l1_filter-006" and found[0.75].mean("share") == 0.6
    assert found[0.5].trial_id == "random_channels-004"


def test_the_dense_network_beside_an_answer_was_fine_tuned_as_long(tmp_path: Path) -> None:
    rows = [
        trial("dense", 0.95, 1.0, fine_tuning_epochs=9),
        trial("dense", 0.91, 1.0),
        trial("l1_filter", 0.89, 0.5),
    ]
    (decision, _) = decisions(result_of(tmp_path, rows))
    assert decision.dense is not None and decision.dense.trial_id == "dense-001"
    assert decision.accuracy_cost == pytest.approx(0.02)


def test_every_method_within_the_budget_is_close_behind_or_far(tmp_path: Path) -> None:
    (decision,) = decisions(result_of(tmp_path, SMALL), 0.5)
    parts = (decision.close, decision.behind, decision.far)
    assert [[each.method for each in part] for part in parts] == [
        [], ["random_channels", "vanilla"], [],
    ]  # fmt: skip


def test_methods_that_luck_may_have_put_behind_are_close(tmp_path: Path) -> None:
    luck = np.random.default_rng(0).normal(0, 0.001, 3)
    rows = [trial("a", 0.80 + own, 0.5, seed=seed) for seed, own in enumerate(luck)]
    rows += [trial("b", 0.80 - own, 0.5, seed=seed) for seed, own in enumerate(luck)]
    rows += [trial("c", 0.70 + own, 0.5, seed=seed) for seed, own in enumerate(luck)]
    (decision,) = decisions(result_of(tmp_path, rows), 0.5)
    assert len(decision.close) == 1 and [each.method for each in decision.behind] == ["c"]


def test_latency_is_over_the_dense_networks_of_the_same_run() -> None:
    frame = trials(
        [(0.8, 50, 4.0), (0.8, 50, 9.0)], seed=[0, 1], dense_latency_ms=[8.0, 12.0],
        latency_ms_batch128=[30.0, 10.0], dense_latency_ms_batch128=[20.0, 20.0],
    )  # fmt: skip
    (found,) = contenders(frame, Limits())
    assert found.mean("latency_ratio") == pytest.approx((4 / 8 + 9 / 12) / 2)
    assert found.mean("latency_ratio_batch128") == pytest.approx((1.5 + 0.5) / 2)
