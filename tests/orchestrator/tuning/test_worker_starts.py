"""Starts of workers that fail: when they end a sweep."""

from contextlib import suppress

import pytest

from orchestrator.tuning.callbacks.worker_starts import (
    MOST_FAILED_STARTS,
    ONE_FAILURE_S,
    FailedStarts,
    NoWorkerError,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def n_failures(clock: Clock, starting: list[set[str]], up: int = 0, most: int = 20) -> int | None:
    """After how many failed starts, one at a time, the sweep ends.

    Args:
        starting: who else is starting at each; the last one stands for all later ones.
    """
    starts = FailedStarts(clock)
    for number in range(most):
        clock.now += 2 * ONE_FAILURE_S
        others = starting[min(number, len(starting) - 1)]
        try:
            starts.start_failed(f"trial {number}", others, up, "no module")
        except NoWorkerError as error:
            assert str(error) == "No worker process can start: no module"
            return number + 1
    return None


def test_too_many_in_a_row_end_the_sweep(clock: Clock) -> None:
    assert n_failures(clock, [set()]) == MOST_FAILED_STARTS


def test_one_that_is_always_starting_is_no_hope(clock: Clock) -> None:
    """Of two that fail by turns, the next one has started when one fails."""
    by_turns = [{f"trial {number + 1}"} for number in range(20)]
    assert n_failures(clock, by_turns) == MOST_FAILED_STARTS


def test_one_that_was_starting_at_the_first_failure_is_waited_for(clock: Clock) -> None:
    assert n_failures(clock, [{"slow"}]) is None
    assert n_failures(clock, [{"slow"}] * 6 + [set()]) == 7


def test_none_ends_it_while_a_worker_is_up(clock: Clock) -> None:
    assert n_failures(clock, [set()], up=1) is None


def test_those_of_one_lost_node_are_one_failure(clock: Clock) -> None:
    starts = FailedStarts(clock)
    for number in range(3 * MOST_FAILED_STARTS):
        clock.now += 0.9 * ONE_FAILURE_S / MOST_FAILED_STARTS
        starts.start_failed(f"trial {number}", set(), 0, "node lost")


def test_they_are_counted_anew_when_one_is_up(clock: Clock) -> None:
    starts = FailedStarts(clock)
    for number in range(5 * MOST_FAILED_STARTS):
        clock.now += 2 * ONE_FAILURE_S
        if number % (MOST_FAILED_STARTS - 1) == 0:
            starts.worker_is_up()
        starts.start_failed(f"trial {number}", set(), 0, "no module")
    with suppress(NoWorkerError):
        for number in range(MOST_FAILED_STARTS):
            clock.now += 2 * ONE_FAILURE_S
            starts.start_failed(f"later {number}", set(), 0, "no module")
        pytest.fail("none came up, and the sweep does not end")
