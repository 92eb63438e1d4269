"""The column `budget_missed`: what a budget asked for against what came, whatever the method."""

from typing import Any

import pytest

from baselines.channels.l1_filter import L1Filter
from baselines.weights.magnitude import Magnitude
from orchestrator.jobs.trial import budget_missed
from rnp.runtime_neural_pruning import RNP


def missed(method: Any, share: float) -> float | None:
    return budget_missed(method, {"multiplications": 2e6 * share, "dense_multiplications": 2e6})


@pytest.mark.parametrize("method", [RNP, L1Filter])
def test_a_budget_is_missed_by_more_than_a_hundredth_to_either_side(method: Any) -> None:
    asked = method(keep_multiplications=0.7)
    assert missed(asked, 0.5) == pytest.approx(0.5 / 0.7 - 1)
    assert missed(asked, 0.71) == pytest.approx(0.71 / 0.7 - 1)
    for met in (0.7, 0.7 * 1.009, 0.7 * 0.991):
        assert missed(asked, met) is None


def test_where_no_budget_is_asked_for_none_is_missed() -> None:
    assert missed(RNP(p=-0.1), 0.5) is None
    assert missed(L1Filter(keep_ratio=0.5), 0.9) is None
    assert missed(Magnitude(), 1.0) is None
