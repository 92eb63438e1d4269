"""The time in which a sweep's trials ran."""

import math
from collections.abc import Iterable
from datetime import datetime

PAUSE_S = 60.0  # between two trials; after a longer one, the sweep was resumed


def time_spent(trials: Iterable[tuple[str, float]]) -> float:
    """The seconds in which trials ran, side by side or one after another.

    Args:
        trials: `started_at` and `duration_s` of each.
    """
    spans = sorted(
        (start, start + duration)
        for start, duration in (
            (datetime.fromisoformat(started).timestamp(), duration) for started, duration in trials
        )
    )
    total, until = 0.0, -math.inf
    for start, end in spans:
        begin = until if start - until <= PAUSE_S else start
        total += max(0.0, end - begin)
        until = max(until, end)
    return total
