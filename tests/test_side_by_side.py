import json
import time

import pytest

from benchmarks.side_by_side import Goal, Result, Speed, measure


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # The machine was five times slower in the second round, for both.
    ours, theirs = Speed((20.0, 4.0, 33.0)), Speed((10.0, 2.0, 11.0))
    assert ours.over(theirs) == 2


def test_contenders_run_in_turn_after_a_warm_up() -> None:
    ran = []

    def contender(name: str) -> int:
        ran.append(name)
        time.sleep(0.001)
        return 5

    speeds = measure({"a": lambda: contender("a"), "b": lambda: contender("b")}, rounds=3)
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    assert all(len(speed.rounds) == 3 for speed in speeds.values())
    assert 0 < speeds["a"].median < 5 / 0.001


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(at_least=10), 10.0, True),
        (Goal(at_least=10), 9.9, False),
        (Goal(at_most=0.05), 0.05, True),
        (Goal(at_most=0.05), 0.06, False),
    ],
)
def test_goals_are_met_or_missed_in_print_and_in_json(goal: Goal, value: float, met: bool) -> None:
    result = Result("some_speed", {"a_over_b": value, "c": 1.0}, {"a_over_b": goal})
    assert ("MISSED" in str(result)) == (not met)
    found = json.loads(result.to_json())
    assert set(found) == {
        "benchmark", "ratios", "goals", "met", "device", "threads", "versions",
    }  # fmt: skip
    assert found["met"] == {"a_over_b": met}
    assert found["ratios"] == {"a_over_b": value, "c": 1.0}
    assert found["goals"] == {"a_over_b": goal.bounds()}
