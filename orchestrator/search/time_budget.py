"""The hours that a search may take: afterwards no trial starts, and those that run come to an end.

They are hours in which trials ran, whichever driver gave them out: time between the end of one
driver and the start of the next is not counted.
"""

import math
import time
from collections.abc import Callable


class TimeBudget:
    """Counts from the first trial that is asked for."""

    def __init__(
        self, hours: float | None, spent_s: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            hours: None for no bound.
            spent_s: what earlier drivers spent; see `time_spent`.
            clock: seconds since whenever.
        """
        self._left_s = math.inf if hours is None else 3600 * hours - spent_s
        self._clock = clock
        self._started: float | None = None

    def is_over(self) -> bool:
        """Whether no new trial is to start. Those that have started come to an end, also where a
        driver was stopped in between."""
        if self._started is None:
            self._started = self._clock()
        return self._clock() - self._started >= self._left_s
