"""Which job is next: dense networks first and once, and each trial when its networks are there.

A trial whose dense network is still being trained waits here, and takes nobody's place meanwhile.
"""

from collections.abc import Callable, Sequence
from enum import Enum

from orchestrator.plan import DenseNetwork, Trial, networks_of

MOST_WAITING = 8
"""Trials that may wait: each was proposed without knowing how the ones before it went."""


class Later(Enum):
    """In place of a job: there is none until one that is running has ended."""

    LATER = "later"


LATER = Later.LATER


class Schedule:
    """The dense networks and trials of a sweep, in an order in which none waits for another."""

    def __init__(
        self,
        known: Sequence[DenseNetwork],
        ask: Callable[[], Trial | None],
        give_up: Callable[[Trial, str], None],
    ) -> None:
        """
        Args:
            known: networks that trials will need, teachers before their students.
            ask: gives the next trial, None where there is none.
            give_up: told of a trial that cannot run, with the error of the network that it needs.
        """
        self._ask = ask
        self._give_up = give_up
        self._untrained = {_key(network): network for network in known}
        self._training: set[str] = set()
        self._trained: set[str] = set()
        self._failed: dict[str, str] = {}
        self._waiting: list[tuple[Trial, list[str]]] = []  # with the keys of what they wait for

    def next(self) -> DenseNetwork | Trial | Later | None:
        """The next job; None after the last."""
        while True:
            job = self._next_network() or self._next_trial()
            if job is not None:
                return job
            if len(self._waiting) == MOST_WAITING or (trial := self._ask()) is None:
                return LATER if self._waiting or self._training else None
            needed = {_key(network): network for network in networks_of(trial)}
            for key, network in needed.items():
                if not (key in self._training or key in self._trained or key in self._failed):
                    self._untrained.setdefault(key, network)
            self._waiting.append((trial, list(needed)))

    def trained(self, network: DenseNetwork) -> None:
        """A network that was given out is in the store."""
        self._training.discard(_key(network))
        self._trained.add(_key(network))

    def failed(self, network: DenseNetwork, error: str) -> None:
        """A network that was given out could not be trained."""
        self._training.discard(_key(network))
        self._failed[_key(network)] = error

    def _next_network(self) -> DenseNetwork | None:
        """The first network that has its teacher. With a failed teacher it has failed itself."""
        for key, network in list(self._untrained.items()):
            teacher = network.teacher and _key(network.teacher)
            if teacher in self._failed:
                self._failed[key] = self._failed[teacher]
                del self._untrained[key]
            elif teacher is None or teacher in self._trained:
                self._training.add(key)
                return self._untrained.pop(key)
        return None

    def _next_trial(self) -> Trial | None:
        """The first waiting trial that has all its networks."""
        for entry in list(self._waiting):
            trial, needed = entry
            failed = next((key for key in needed if key in self._failed), None)
            if failed is not None:
                self._waiting.remove(entry)
                self._give_up(trial, self._failed[failed])
            elif self._trained.issuperset(needed):
                self._waiting.remove(entry)
                return trial
        return None


def _key(network: DenseNetwork) -> str:
    return network.model_dump_json()
