"""Curves of accuracy against cost, worked by hand."""

import math

import numpy as np
import pytest

from orchestrator.analysis.curve import Curve, costs_in_common, mean_difference

NAN = math.nan


def curve(*points: tuple[float, float]) -> Curve:
    """Of points (cost, accuracy)."""
    return Curve.of(np.array([(accuracy, cost) for cost, accuracy in points]).reshape(-1, 2))


def test_a_curve_joins_the_unbeaten_tries_and_ends_at_the_dearest() -> None:
    tried = curve((0.2, 0.5), (0.3, 0.4), (0.4, 0.7), (0.4, 0.6), (0.6, 0.65))
    expected = [0.5, 0.6, 0.7, 0.7, 0.7]
    np.testing.assert_allclose(tried.at(np.array([0.2, 0.3, 0.4, 0.5, 0.6])), expected)


def test_nothing_is_read_beyond_the_ends_nor_across_a_wide_gap() -> None:
    tried = curve((0.2, 0.5), (0.4, 0.7), (0.8, 0.9))
    costs = np.array([0.1, 0.18, 0.41, 0.6, 0.82, 0.9])
    np.testing.assert_allclose(tried.at(costs), [NAN, 0.5, 0.705, NAN, 0.9, NAN])


def test_a_curve_without_a_completed_try_has_nothing_to_read() -> None:
    none = curve((NAN, NAN))
    assert np.isnan(none.at(np.array([0.5]))).all()
    assert math.isnan(mean_difference(none, curve((0.5, 0.8))))


def test_curves_meet_at_the_costs_of_the_one_with_fewer() -> None:
    many = curve(*((cost, cost) for cost in (0.2, 0.3, 0.4, 0.5, 0.6)))
    few = curve((0.25, 0.3), (0.45, 0.4), (0.9, 0.9))
    np.testing.assert_allclose(costs_in_common(many, few), [0.25, 0.45])
    np.testing.assert_allclose(costs_in_common(few, many), [0.25, 0.45])
    assert mean_difference(few, many) == pytest.approx((0.05 - 0.05) / 2)


def test_a_single_point_is_compared_with_the_line_that_passes_it() -> None:
    assert mean_difference(curve((0.5, 0.8)), curve((0.4, 0.7), (0.6, 0.8))) == pytest.approx(0.05)


def test_costs_that_differ_by_a_rounding_of_channels_are_one() -> None:
    assert mean_difference(curve((0.497, 0.8)), curve((0.511, 0.7))) == pytest.approx(0.1)
    assert math.isnan(mean_difference(curve((0.45, 0.8)), curve((0.511, 0.7))))
