"""Frontiers and hypervolumes against brute force and cases worked by hand."""

import math

import numpy as np
import pytest

from orchestrator.analysis.pareto import (
    best_within,
    eligible,
    frontier,
    growing_volume,
    hypervolume,
    non_dominated,
    to_be_confirmed,
    to_be_tested,
    volume,
)
from orchestrator.run_folder.trials_table import COLUMNS
from tests.trial_points import CHANCE, OBJECTIVES, staircase_area, trials

THREE = {**OBJECTIVES, "latency_ms": "minimize"}


def is_dominated(points: np.ndarray) -> np.ndarray:
    """By the definition; (n, m), all to be minimised."""
    return np.array(
        [any((other <= own).all() and (other < own).any() for other in points) for own in points]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objectives", [OBJECTIVES, THREE], ids=["two", "three"])
@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "distinct"])
def test_non_dominated_agrees_with_the_definition(
    objectives: dict[str, str], seed: int, decimals: int
) -> None:
    points = np.random.default_rng(seed).random((120, 3)).round(decimals)
    frame = trials([tuple(point) for point in points])
    to_minimise = points[:, : len(objectives)] * [-1, 1, 1][: len(objectives)]
    found = non_dominated(frame, objectives)
    np.testing.assert_array_equal(found, ~is_dominated(to_minimise))


def test_equal_trials_stay_on_the_frontier_together() -> None:
    frame = trials([(0.9, 50), (0.9, 50), (0.9, 60), (0.8, 50), (0.7, 10)])
    assert list(frontier(frame, OBJECTIVES)["trial_id"]) == ["t004", "t000", "t001"]


def test_failed_stopped_missing_and_confirmation_rows_never_enter() -> None:
    frame = trials(
        [(0.5, 50), (0.9, 10), (0.9, 10), (math.nan, 1), (0.9, math.nan), (0.9, 10), (math.inf, 5)],
        status=["completed", "failed", "stopped", *["completed"] * 4],
        phase=[*["search"] * 5, "confirmation", "search"],
    )
    assert list(frontier(frame, OBJECTIVES)["trial_id"]) == ["t000"]
    assert hypervolume(frame, OBJECTIVES) == pytest.approx(0.5 * 0.4)


def test_the_overall_frontier_is_over_all_methods_and_cells_of_a_data_set() -> None:
    frame = trials(
        [(0.9, 50), (0.8, 60), (0.85, 40), (0.1, 99)],
        method=["l1_filter", "magnitude", "l1_filter", "l1_filter"],
        cell=["depth=4", "depth=4", "depth=8", "depth=4"],
        dataset=["digits", "digits", "digits", "faces"],
    )
    rows = frontier(frame, OBJECTIVES).set_index("trial_id")["on_overall_frontier"]
    assert rows.to_dict() == {"t000": True, "t001": False, "t002": True}
    alone = frontier(frame[frame["dataset"] == "faces"], OBJECTIVES)
    assert list(alone["on_overall_frontier"]) == [True]


def test_each_seed_has_its_own_frontier_tested_also_where_another_seed_was_luckier() -> None:
    points = [(0.9, 50), (0.8, 60), (0.7, 55), (0.7, 60)]
    frame = trials(points, seed=[0, 1, 1, 1])
    assert list(frontier(frame, OBJECTIVES)["trial_id"]) == ["t000"]
    assert set(to_be_tested(frame, OBJECTIVES)) == {"t000", "t001", "t002"}


def test_trials_of_the_same_network_are_confirmed_once() -> None:
    """Keep ratios that round to the same channels, say; another seed's is another network."""
    points = [(0.9, 50), (0.9, 50), (0.9, 50), (0.9, 50), (0.8, 40)]
    frame = trials(points, seed=[0, 0, 1, 0, 0], train_accuracy=[0.99, 0.99, 0.99, 0.98, 0.99])
    assert to_be_confirmed(frame, OBJECTIVES) == ["t004", "t000", "t002", "t003"]


def test_no_trial_gives_an_empty_frontier_with_its_columns() -> None:
    empty = frontier(trials([]), OBJECTIVES)
    failed = frontier(trials([(0.5, 50)], status="failed"), OBJECTIVES)
    for frame in (empty, failed):
        assert len(frame) == 0
        assert list(frame.columns) == [*COLUMNS, "on_overall_frontier"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "distinct"])
def test_hypervolume_is_the_area_under_the_staircase(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy, share = rng.random(60).round(decimals), (1.3 * rng.random(60)).round(decimals)
    frame = trials(list(zip(accuracy, 100 * share, strict=True)))
    expected = staircase_area(np.column_stack([accuracy, share]))
    assert hypervolume(frame, OBJECTIVES) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_in_three_dimensions_agrees_with_counting_a_fine_grid() -> None:
    rng = np.random.default_rng(0)
    cells = 20  # every coordinate on a grid line, so that counting cells is exact
    accuracy = CHANCE + (1 - CHANCE) * rng.integers(0, cells + 1, 30) / cells
    cost, latency = rng.integers(0, cells + 1, (2, 30)) / cells
    frame = trials(list(zip(accuracy, 100 * cost, 10 * latency, strict=True)))
    middle = (np.arange(cells) + 0.5) / cells
    a, c, t = np.meshgrid(CHANCE + (1 - CHANCE) * middle, middle, middle, indexing="ij")
    covered = np.zeros_like(a, dtype=bool)
    for point in zip(accuracy, cost, latency, strict=True):
        covered |= (point[0] >= a) & (point[1] <= c) & (point[2] <= t)
    assert hypervolume(frame, THREE) == pytest.approx((1 - CHANCE) * covered.mean())


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.6, 25), 0.5 * 0.75),
        ((1.0, 0), 1 - CHANCE),
        ((0.6, 100), 0.0),  # as dear as the dense network
        ((0.1, 25), 0.0),  # as good as chance
        ((0.05, 25), 0.0),
        ((0.9, 130), 0.0),
    ],
)
def test_hypervolume_of_one_point(point: tuple[float, float], expected: float) -> None:
    assert hypervolume(trials([point]), OBJECTIVES) == pytest.approx(expected)


@pytest.mark.parametrize("objectives", [OBJECTIVES, THREE], ids=["two", "three"])
@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "distinct"])
def test_growing_volume_is_that_of_the_points_so_far(
    objectives: dict[str, str], decimals: int
) -> None:
    points = np.random.default_rng(0).random((60, len(objectives))).round(decimals)
    points[[0, 7]] = math.nan
    expected = [volume(points[:n], objectives, CHANCE) for n in range(1, 61)]
    np.testing.assert_allclose(growing_volume(points, objectives, CHANCE), expected, atol=1e-12)


def test_hypervolume_of_no_point_is_zero() -> None:
    assert hypervolume(trials([]), OBJECTIVES) == 0
    assert hypervolume(trials([(0.9, 10)], dense_multiplications=math.nan), OBJECTIVES) == 0


def test_every_cost_is_a_share_of_the_dense_networks() -> None:
    frame = trials(
        [(0.6, 90, 2.5)],
        nonzero_multiplications=40.0,
        parameters=300,
        mean_bits=8.0,
        dense_mean_bits=32.0,
        winograd_multiplications=9.0,
        dense_winograd_multiplications=45.0,
    )
    for cost, share in {
        "multiplications": 0.9,
        "nonzero_multiplications": 0.4,
        "parameters": 0.3,
        "latency_ms": 0.25,
        "mean_bits": 0.25,
        "winograd_multiplications": 0.2,
    }.items():
        volume = hypervolume(frame, {"val_accuracy": "maximize", cost: "minimize"})
        assert volume == pytest.approx(0.5 * (1 - share)), cost
    costs = {"parameters": "minimize", "latency_ms": "minimize"}
    assert hypervolume(frame, costs) == pytest.approx(0.7 * 0.75)


def test_the_best_within_a_budget_is_the_cheaper_of_two_equally_accurate() -> None:
    frame = trials([(0.8, 50), (0.8, 40), (0.7, 30), (0.9, 51)])
    best = best_within(frame, 0.5)
    assert best is not None
    assert best["trial_id"] == "t001"
    assert best_within(frame, 0.1) is None


def test_eligible_asks_only_for_the_objectives_given() -> None:
    frame = trials([(0.8, 50, math.nan)])
    assert len(eligible(frame, OBJECTIVES)) == 1
    assert len(eligible(frame, THREE)) == 0
