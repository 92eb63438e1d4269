"""Comparisons of methods against brute force, whole enumerations and cases worked by hand."""

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.comparison import (
    attainment,
    best_at,
    compare_methods,
    compare_pairs,
    interval,
)
from tests.trial_points import OBJECTIVES, staircase_area, trials

BUDGETS = ["val_accuracy_at_25", "val_accuracy_at_50", "val_accuracy_at_75"]


def random_trials(n: int, stream: int, **columns: Any) -> pd.DataFrame:
    accuracy, cost = np.random.default_rng(stream).random((2, n)).round(2)
    return trials(list(zip(accuracy, 100 * cost, strict=True)), **columns)


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
    np.testing.assert_array_equal(
        table[BUDGETS].to_numpy(dtype=float),
        [[0.5, 0.7, 0.7], [math.nan, math.nan, 0.6], [0.2, 0.2, 0.2]],
    )
    expected = 0.3 * 0.4 + 0.251 * 0.6 + 0.249 * 0.8
    assert table["hypervolume"][0] == pytest.approx(expected)


def test_figures_of_several_seeds_are_means_of_each_seeds_own() -> None:
    frame = trials([(0.6, 20), (0.8, 40), (0.5, 50), (0.7, 90)], method="thinet", seed=[0, 0, 1, 1])
    (row,) = compare_methods(frame, OBJECTIVES).to_dict("records")
    first, second = 0.2 * 0.5 + 0.6 * 0.7, 0.4 * 0.4 + 0.1 * 0.6
    assert row["seeds"] == 2 and row["tries"] == 4
    assert row["hypervolume"] == pytest.approx((first + second) / 2)
    assert row["hypervolume_low"] == pytest.approx(second)  # one draw in four has this seed alone
    assert row["hypervolume_high"] == pytest.approx(first)
    assert math.isnan(row["val_accuracy_at_25"])  # the second seed has none so cheap
    assert row["val_accuracy_at_50"] == pytest.approx((0.8 + 0.5) / 2)


def test_failed_tries_count_as_tries_that_found_nothing() -> None:
    frame = trials([(0.6, 50), (0.9, 10)], status=["completed", "failed"])
    (row,) = compare_methods(frame, OBJECTIVES).to_dict("records")
    assert row["hypervolume"] == pytest.approx(0.5 * 0.5)
    assert row["hypervolume_low"] == 0  # a quarter of the draws has the failed try twice
    assert row["hypervolume_high"] == pytest.approx(0.5 * 0.5)


def test_one_try_has_no_interval() -> None:
    (row,) = compare_methods(trials([(0.6, 50)]), OBJECTIVES).to_dict("records")
    assert math.isnan(row["hypervolume_low"]) and math.isnan(row["hypervolume_high"])


@pytest.mark.parametrize("n_seeds", [1, 4])
def test_the_interval_is_that_of_all_possible_draws(n_seeds: int) -> None:
    """Four tries of one seed, or four seeds: 256 draws, each as likely as any other."""
    rng = np.random.default_rng(n_seeds)
    if n_seeds == 1:
        seeds = [np.column_stack([rng.random(4), rng.random(4)])]
        drawn = [seeds[0][list(draw)] for draw in product(range(4), repeat=4)]
        found = np.array([staircase_area(points) for points in drawn])
    else:
        seeds = [np.column_stack([rng.random(3), rng.random(3)]) for _ in range(4)]
        areas = np.array([staircase_area(points) for points in seeds])
        found = np.array([areas[list(draw)].mean() for draw in product(range(4), repeat=4)])
    low, high = interval(seeds, staircase_area)
    luck = 0.02  # four standard errors of a share of 0.025 among 1,000 draws
    assert (found < low - 1e-9).mean() <= 0.025 + luck
    assert (found <= low + 1e-9).mean() >= 0.025 - luck
    assert (found > high + 1e-9).mean() <= 0.025 + luck
    assert (found >= high - 1e-9).mean() >= 0.025 - luck
    assert low < high


@pytest.mark.parametrize("seed", range(3))
def test_pairs_agree_with_counting_cost_by_cost(seed: int) -> None:
    frame = random_trials(
        60,
        seed,
        method=["a", "b", "c"] * 20,
        seed=[0, 1] * 30,
        cell=["x"] * 30 + ["y"] * 30,
        status=["completed"] * 55 + ["failed"] * 5,
    )

    completed = frame[frame["status"] == "completed"]
    columns = ["val_accuracy", "multiplications"]
    points = {
        key: rows[columns].to_numpy().tolist()
        for key, rows in completed.groupby(["method", "cell", "seed"])
    }

    def best(method: str, cell: str, seed: int, percent: int) -> float | None:
        own = points[method, cell, seed]
        return max((accuracy for accuracy, cost in own if cost <= percent), default=None)

    table = compare_pairs(frame).set_index(["method", "other"])
    assert len(table) == 6
    for one, other in table.index:
        found = []
        for cell, number in product("xy", (0, 1)):
            both = [
                (own, its)
                for percent in range(1, 101)
                if (own := best(one, cell, number, percent)) is not None
                and (its := best(other, cell, number, percent)) is not None
            ]
            found.append(sum(own > its for own, its in both) / len(both))
        row = table.loc[(one, other)]
        assert row["ahead"] == pytest.approx(np.mean(found))
        assert row["comparisons"] == 4
        means = [np.mean(draw) for draw in product(found, repeat=4)]
        assert min(means) <= row["ahead_low"] <= row["ahead"] <= row["ahead_high"] <= max(means)
        assert row["ahead_low"] == pytest.approx(np.quantile(means, 0.025), abs=0.05)


def test_pairs_worked_by_hand() -> None:
    # a is alone up to 30 % and ahead up to 60 %, b from there to 80 %, level from 80 % on
    frame = trials(
        [(0.5, 20), (0.6, 40), (0.8, 80), (0.5, 30), (0.7, 60), (0.8, 80)],
        method=["a"] * 3 + ["b"] * 3,
    )
    table = compare_pairs(frame).set_index(["method", "other"])
    shared = 71  # 30 % to 100 %
    assert table.loc[("a", "b"), "ahead"] == pytest.approx(20 / shared)  # 40 % to 59 %
    assert table.loc[("b", "a"), "ahead"] == pytest.approx(20 / shared)  # 60 % to 79 %
    assert table.loc[("a", "b"), "ahead_low"] == 0
    assert table.loc[("a", "b"), "ahead_high"] > 20 / shared


def test_one_try_against_one_is_ahead_or_not_without_an_interval() -> None:
    table = compare_pairs(trials([(0.9, 40), (0.8, 20)], method=["a", "b"]))
    assert list(table["ahead"]) == [1.0, 0.0]
    assert table[["ahead_low", "ahead_high"]].isna().all(axis=None)


def test_methods_that_share_no_cost_are_no_pair() -> None:
    assert compare_pairs(trials([(0.9, 40), (0.8, 101)], method=["a", "b"])).empty
    assert compare_pairs(trials([])).empty


def test_the_best_at_a_cost_is_missing_below_the_cheapest() -> None:
    stairs = best_at(np.array([[0.5, 0.25], [0.4, 0.3], [0.8, 0.501], [math.nan, math.nan]]))
    assert np.isnan(stairs[:24]).all()
    np.testing.assert_array_equal(stairs[24:50], 0.5)
    np.testing.assert_array_equal(stairs[50:], 0.8)


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
