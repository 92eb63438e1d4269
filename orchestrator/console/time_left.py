"""How long the jobs of a sweep take, by method, and how long those to come will."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ON_TEST_IMAGES = " on test images"  # ends the name of a job that is no trial


def kind_of(name: str) -> str:
    """The beginning of a trial's name, which tells its method; of other jobs what they do."""
    return ON_TEST_IMAGES if name.endswith(ON_TEST_IMAGES) else name.partition("-")[0]


@dataclass
class Durations:
    """Durations of the jobs of one part of a sweep, by `kind_of` their names."""

    planned: Mapping[str, float] = field(default_factory=dict)
    """The search's trials."""
    took_s: dict[str, list[float]] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    earlier_s: dict[str, float] = field(default_factory=dict)
    """Mean of the parts before."""

    def begin_part(self) -> None:
        """Another part begins; what trials took in the one before is remembered."""
        self.earlier_s |= self._means()
        self.took_s.clear()
        self.ended.clear()

    def end(self, name: str, took_s: float | None) -> None:
        """A job has ended; None if nobody knows how long it took."""
        self.ended[kind_of(name)] += 1
        if took_s is not None:
            self.took_s.setdefault(kind_of(name), []).append(took_s)

    def work_left_s(
        self, left: float, running: Sequence[tuple[str, float]], points: Mapping[str, int]
    ) -> float:
        """Seconds that `left` jobs take one after another; NaN before the first has ended.

        A method's trials take as long as its own did. In the search those of a method without any
        take as long as the slowest other method's, since sweep files mostly begin with the simple
        methods, or as its first does by now. A later part runs the points of
        the frontiers again, and its trials take as long as they did in the search.

        Args:
            running: names of jobs among them, and for how long each has run.
            points: how many there are on each method's Pareto front.
        """
        means = self._means()
        if not means:
            return math.nan
        usual = max(means.values())
        to_come = {kind: n - self.ended[kind] for kind, n in self.planned.items()}
        if sum(to_come.values()) != left:  # another part than the search
            usual = self._mean_job_s(means, points)
            return max(left * usual - sum(min(lasted, usual) for _, lasted in running), 0.0)
        trials = [(kind_of(name), s) for name, s in running if kind_of(name) in to_come]
        for kind, lasted in trials:
            means.setdefault(kind, max(usual, lasted))
        work = sum(n * means.get(kind, usual) for kind, n in to_come.items())
        return max(work - sum(min(lasted, means[kind]) for kind, lasted in trials), 0.0)

    def _mean_job_s(self, means: Mapping[str, float], points: Mapping[str, int]) -> float:
        known = {kind: n for kind, n in points.items() if kind in self.earlier_s}
        if known and means.keys() <= self.earlier_s.keys():
            total = sum(n * means.get(kind, self.earlier_s[kind]) for kind, n in known.items())
            return total / sum(known.values())
        every = [each for own in self.took_s.values() for each in own]
        return sum(every) / len(every)

    def _means(self) -> dict[str, float]:
        return {kind: sum(own) / len(own) for kind, own in self.took_s.items()}
