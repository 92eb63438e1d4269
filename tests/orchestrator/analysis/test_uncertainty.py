"""Intervals hold the truth as often as they say."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from orchestrator.analysis.uncertainty import margin_over_seeds, t_interval

SWEEPS = 4000  # in which a share of 0.95 has a standard error of 0.0034


@pytest.mark.parametrize("n_seeds", [2, 3, 5, 10])
def test_intervals_over_seeds_hold_the_mean_in_95_of_100_sweeps(n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    held = 0
    for values in rng.normal(0.74, 0.004, (SWEEPS, n_seeds)):
        low, high = t_interval(values)
        held += low <= 0.74 <= high
    assert 0.93 < held / SWEEPS < 0.97


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_they_do_so_of_accuracies_that_are_counted_on_images(n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    held = 0
    for values in rng.binomial(2000, rng.normal(0.74, 0.01, (SWEEPS, n_seeds))) / 2000:
        low, high = t_interval(values)
        held += low <= 0.74 <= high
    assert 0.93 < held / SWEEPS < 0.97


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("shared", [True, False], ids=["paired", "apart"])
def test_differences_of_two_methods_are_held_as_often(n_seeds: int, shared: bool) -> None:
    """Of Welch's interval with two seeds against two that is known to be on the safe side."""
    rng = np.random.default_rng(n_seeds)
    held = 0
    for split, one, other in rng.normal(0, 0.01, (SWEEPS // 4, 3, n_seeds)):
        own = pd.Series(0.74 + one + split)
        its = pd.Series(0.73 + other + split, index=own.index + (0 if shared else 100))
        held += abs(own.mean() - its.mean() - 0.01) <= margin_over_seeds(own, its) / 100
    share = held / (SWEEPS // 4)
    assert share > 0.93 and (share < 0.97 or not shared)


def test_an_interval_is_scipys() -> None:
    values = np.random.default_rng(0).random(6)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))


def test_a_margin_is_that_of_pairs_where_seeds_are_shared_and_else_welchs() -> None:
    one, other = (pd.Series(each) for each in np.random.default_rng(1).random((2, 5)))
    paired = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert margin_over_seeds(one, other) == pytest.approx(50 * (paired.high - paired.low))
    apart = other[:4].set_axis([7, 8, 9, 10])
    welch = stats.ttest_ind(one, apart, equal_var=False).confidence_interval(0.95)
    assert margin_over_seeds(one, apart) == pytest.approx(50 * (welch.high - welch.low))


def test_one_seed_says_nothing_of_luck() -> None:
    assert all(map(math.isnan, t_interval([0.7])))
    assert margin_over_seeds(pd.Series([0.7]), pd.Series([0.8])) == 0
