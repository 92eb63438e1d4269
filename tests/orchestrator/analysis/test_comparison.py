"""Comparisons of methods against counting by hand and cases worked by hand."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.comparison import attainment, compare_methods, compare_pairs
from orchestrator.analysis.uncertainty import t_interval
from tests.trial_points import OBJECTIVES, staircase_area, trials

BUDGETS = ["val_accuracy_at_25", "val_accuracy_at_50", "val_accuracy_at_75"]


def random_trials(n: int, stream: int, **columns: Any) -> pd.DataFrame:
    accuracy, cost = np.random.default_rng(stream).random((2, n)).round(2)
    return trials(list(zip(accuracy, 100 * cost, strict=True)), **columns)


def on_curve(curve: Callable[[float], float], costs: dict[str, list[int]]) -> pd.DataFrame:
    """Trials of one curve under several names, each at costs of its own, with two seeds."""
    tried = [(m, c, s) for m, own in costs.items() for c in own for s in (0, 1)]
    points = [(curve(cost / 100) - 0.01 * seed, cost) for _, cost, seed in tried]
    return trials(points, method=[m for m, _, _ in tried], seed=[s for _, _, s in tried])


def bent(share: float) -> float:
    return 0.9 - 0.5 * (1 - share) ** 2


def test_methods_are_compared_per_cell() -> None:
    frame = trials(
        [(0.5, 20), (0.7, 50), (0.9, 75.1), (0.95, 10), (0.6, 60), (0.2, 5)],
        method=["l1_filter"] * 4 + ["dense"] * 2,
        cell=["depth=4"] * 5 + ["depth=8"],
        status=["completed"] * 3 + ["failed"] + ["completed"] * 2,
    )
    table = compare_methods(frame, OBJECTIVES)
    assert table[["cell", "method", "seeds", "tries", "completed"]].to_numpy().tolist() == [
        ["depth=4", "l1_filter", 1, 4, 3],
        ["depth=4", "dense", 1, 1, 1],
        ["depth=8", "dense", 1, 1, 1],
    ]
    np.testing.assert_allclose(
        table[BUDGETS].to_numpy(dtype=float),
        [[math.nan, 0.7, 0.7 + 0.2 * 25 / 25.1], [math.nan] * 3, [math.nan] * 3],
    )


def test_figures_of_several_seeds_are_means_of_each_seeds_own() -> None:
    frame = trials([(0.6, 20), (0.8, 40), (0.5, 50), (0.7, 90)], method="thinet", seed=[1, 1, 0, 0])
    (row,) = compare_methods(frame, OBJECTIVES).to_dict("records")
    first, second = 0.4 * 0.4 + 0.1 * 0.6, 0.2 * 0.5 + 0.6 * 0.7
    assert row["seeds"] == 2 and row["tries"] == 4
    assert row["hypervolume"] == pytest.approx((first + second) / 2)
    assert row["hypervolume_by_seed"] == pytest.approx((first, second))
    # Student's t of one degree of freedom is a Cauchy distribution.
    margin = math.tan(0.475 * math.pi) * (second - first) / 2
    assert row["hypervolume_high"] - row["hypervolume"] == pytest.approx(margin)
    assert row["hypervolume"] - row["hypervolume_low"] == pytest.approx(margin)
    assert math.isnan(row["val_accuracy_at_50"]), "the first seed tried nothing near"


def test_one_seed_has_no_interval_however_many_tries_it_had() -> None:
    (row,) = compare_methods(random_trials(9, 0), OBJECTIVES).to_dict("records")
    assert row["hypervolume"] > 0
    assert math.isnan(row["hypervolume_low"]) and math.isnan(row["hypervolume_high"])


@pytest.mark.parametrize("few", [[20, 80], [40, 60], [60]])
@pytest.mark.parametrize("curve", [bent, lambda share: 0.4 + 0.5 * share, lambda share: 0.8])
def test_one_curve_under_two_names_is_equal_however_many_points_each_has(
    curve: Callable[[float], float], few: list[int]
) -> None:
    frame = on_curve(curve, {"many": [20, 40, 50, 60, 80], "few": few})
    many, other = compare_methods(frame, OBJECTIVES).to_dict("records")
    assert many["hypervolume"] == pytest.approx(other["hypervolume"]) and other["hypervolume"] > 0
    table = compare_pairs(frame)
    assert len(table) == 2 and table["difference"].to_numpy() == pytest.approx([0, 0], abs=1e-9)


def test_points_between_those_of_the_other_method_are_read_from_its_line() -> None:
    frame = on_curve(lambda share: 0.4 + 0.5 * share, {"a": [20, 40, 60], "b": [30, 50]})
    assert compare_pairs(frame)["difference"].to_numpy() == pytest.approx([0, 0], abs=1e-9)
    a, b = compare_methods(frame, OBJECTIVES)["hypervolume"]
    assert a == pytest.approx(b) and b > 0


def test_a_method_that_shares_no_cost_keeps_none_of_the_others_from_being_compared() -> None:
    frame = on_curve(bent, {"a": [20, 40, 60], "b": [20, 60], "c": [97]})
    table = compare_methods(frame, OBJECTIVES).set_index("method")
    assert table["hypervolume"].isna()["c"] and table["outside"]["c"] == ""
    by_seed = [staircase_area(np.array([(bent(c) - d, c) for c in (0.2, 0.6)])) for d in (0, 0.01)]
    assert table.loc["a", "hypervolume_by_seed"] == pytest.approx(by_seed)
    assert table.loc["b", "hypervolume_by_seed"] == pytest.approx(by_seed)


def test_with_a_third_objective_the_trials_at_shared_costs_count() -> None:
    objectives = {**OBJECTIVES, "latency_ms": "minimize"}
    points = [(0.8, 40, 4), (0.7, 20, 2), (0.75, 41, 3)]
    table = compare_methods(trials(points, method=["a", "a", "b"]), objectives)
    assert table["hypervolume"].to_numpy() == pytest.approx([0.7 * 0.6 * 0.6, 0.65 * 0.59 * 0.7])


def test_of_methods_with_as_many_tries_every_trial_counts() -> None:
    frame = trials([(0.6, 20), (0.7, 45), (0.5, 30), (0.8, 60)], method=["a", "a", "b", "b"])
    table = compare_methods(frame, OBJECTIVES)
    expected = [0.25 * 0.5 + 0.55 * 0.6, 0.3 * 0.4 + 0.4 * 0.7]
    assert table["hypervolume"].to_numpy() == pytest.approx(expected)


def test_a_failed_try_was_a_try_all_the_same() -> None:
    frame = trials(
        [(0.6, 20), (0.7, 45), (0.5, 30), (0.8, 60)],
        method=["a", "a", "b", "b"],
        status=["completed", "failed", "completed", "completed"],
    )
    table = compare_methods(frame, OBJECTIVES)
    assert table["hypervolume"].to_numpy() == pytest.approx([0.8 * 0.5, 0.3 * 0.4 + 0.4 * 0.7])


def test_a_method_outside_the_reference_point_says_in_what() -> None:
    objectives = {**OBJECTIVES, "parameters": "minimize"}
    frame = trials(
        [(0.8, 40), (0.85, 60), (0.9, 40), (0.92, 60), (0.05, 30), (0.05, 40), (0.9, 120)],
        method=["l1_filter"] * 2 + ["rnp"] * 2 + ["random_channels"] * 2 + ["dense"],
        parameters=[400, 600, 1020, 1020, 300, 400, 1000],
    )
    table = compare_methods(frame, objectives).set_index("method")
    assert table["outside"].to_dict() == {
        "l1_filter": "",
        "rnp": "parameters",
        "random_channels": "val_accuracy",
        "dense": "multiplications, parameters",
    }
    assert table["hypervolume"].notna().to_dict() == {
        "l1_filter": True, "rnp": False, "random_channels": False, "dense": False,
    }  # fmt: skip
    volume = 0.4 * 0.4 * 0.75 + (0.6 * 0.6 - 0.4 * 0.4) * 0.7
    assert table.loc["l1_filter", "hypervolume"] == pytest.approx(volume, abs=0.05)


def test_what_completed_nothing_has_no_hypervolume_and_is_not_outside() -> None:
    frame = trials([(0.8, 40), (0.9, 40)], method=["a", "b"], status=["failed", "completed"])
    table = compare_methods(frame, OBJECTIVES).set_index("method")
    assert table.loc["a", "hypervolume"] == 0 and table.loc["a", "outside"] == ""


def test_pairs_are_differences_of_each_seed_over_its_cells() -> None:
    rng = np.random.default_rng(0)
    accuracies = np.sort(rng.random((2, 3, 2, 4)))  # method, seed, cell, cost
    keys = list(product("ab", range(3), "xy", (20, 40, 60, 80)))
    frame = trials(
        [(value, cost) for value, (*_, cost) in zip(accuracies.ravel(), keys, strict=True)],
        method=[key[0] for key in keys],
        seed=[key[1] for key in keys],
        cell=[key[2] for key in keys],
    )
    table = compare_pairs(frame.sample(frac=1, random_state=0)).to_dict("records")
    rows = {(row["method"], row["other"]): row for row in table}
    by_seed = (accuracies[0] - accuracies[1]).mean(axis=(1, 2))
    own, its = rows["a", "b"], rows["b", "a"]
    assert own["by_seed"] == pytest.approx(by_seed) and own["seeds"] == 3
    assert own["difference"] == pytest.approx(by_seed.mean())
    low, high = t_interval(by_seed)
    assert (own["difference_low"], own["difference_high"]) == pytest.approx((low, high))
    assert its["difference"] == pytest.approx(-by_seed.mean())
    assert (its["difference_low"], its["difference_high"]) == pytest.approx((-high, -low))


def test_what_all_seeds_have_in_common_does_not_widen_a_pairs_interval() -> None:
    luck = np.random.default_rng(1).normal(0, 0.05, 4)
    points = [(0.7 + own + ahead, 50) for ahead in (0.02, 0) for own in luck]
    table = compare_pairs(trials(points, method=["a"] * 4 + ["b"] * 4, seed=[0, 1, 2, 3] * 2))
    row = table.iloc[0]
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.02, 0.02))


def test_one_seed_of_a_pair_has_no_interval() -> None:
    table = compare_pairs(trials([(0.9, 40), (0.8, 41)], method=["a", "b"]))
    assert table["difference"].to_numpy() == pytest.approx([0.1, -0.1])
    assert table[["difference_low", "difference_high"]].isna().all(axis=None)


def test_methods_that_share_no_cost_or_no_seed_are_no_pair() -> None:
    assert compare_pairs(trials([(0.9, 40), (0.8, 80)], method=["a", "b"])).empty
    assert compare_pairs(trials([(0.9, 40), (0.8, 40)], method=["a", "b"], seed=[0, 1])).empty
    assert compare_pairs(trials([])).empty


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_attainment_surfaces_hold_what_so_many_seeds_reach(n_seeds: int) -> None:
    n = 8 * n_seeds
    frame = random_trials(n, n_seeds, seed=list(range(n_seeds)) * 8)
    table = attainment(frame)
    assert set(table["reached_by"]) == {1, (n_seeds + 1) // 2, n_seeds}
    grid = np.arange(0.005, 1, 0.02)
    points = frame[["multiplications", "val_accuracy", "seed"]].to_numpy(dtype=float).tolist()
    for count, rows in table.groupby("reached_by"):
        corners = rows[["share", "val_accuracy"]].to_numpy().tolist()
        for share, accuracy in product(grid, grid):
            seeds = {
                seed for cost, value, seed in points if cost <= 100 * share and value >= accuracy
            }
            inside = any(cost <= share and value >= accuracy for cost, value in corners)
            assert inside == (len(seeds) >= count)


def test_attainment_needs_seeds_that_all_found_something() -> None:
    assert attainment(random_trials(5, 0)).empty
    frame = random_trials(6, 0, seed=[0, 1] * 3, status=["completed", "failed"] * 3)
    assert set(attainment(frame)["reached_by"]) == {1}
