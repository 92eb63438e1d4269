"""The coordinator: which job of a sweep is next.

Dense networks come first, each trial when its networks are there; then the confirmations of the
Pareto fronts, then the networks that meet the test images. Each part begins when all jobs of the
one before have ended.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import pandas as pd

from orchestrator.analysis.pareto import to_be_confirmed, to_be_tested
from orchestrator.plan import DenseNetwork, Plan, Trial, confirmation, confirmations, networks_of
from orchestrator.plan.jobs import (
    FailedTrial,
    FinalTest,
    Job,
    Lost,
    Outcome,
    TrialResult,
    job_name,
    trial_of,
)

MOST_WAITING = 8
"""Trials that may wait for networks: each was proposed without hearing of those before it."""


class Wait(Enum):
    """In place of a job: there is none until one that is running has ended."""

    WAIT = "wait"


WAIT = Wait.WAIT

OnPhase = Callable[[str, float], None]
"""Told of each part of the sweep as it begins: its title, and how many jobs it has."""


class Trials(Protocol):
    """Where the trials of the search come from."""

    @property
    def left(self) -> float:
        """How many are still to come; infinite if that is not known."""
        ...

    def ask(self, new: bool = True) -> Trial | None:
        """The next one, None after the last; without `new` only what was proposed before."""
        ...

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """How one ended."""
        ...

    def trial(self, trial_id: str) -> Trial:
        """One that has ended."""
        ...


class Coordinator:
    """Gives a sweep's jobs one by one, and hears how each ended."""

    def __init__(
        self,
        plan: Plan,
        trials: Trials,
        table: Callable[[], pd.DataFrame],
        may_start: Callable[[], bool] = lambda: True,
        on_phase: OnPhase = lambda title, total: None,
    ) -> None:
        """
        Args:
            trials: of the search.
            table: reads trials.csv as it is now; its rows of earlier runs are not run again.
            may_start: whether a new trial of the search may start.
        """
        self._plan = plan
        self._trials = trials
        self._table = table
        self._on_phase = on_phase
        self._networks = _Networks(plan.dense_networks)
        self._may_start = may_start
        self._waiting: list[tuple[Trial, list[str]]] = []  # with the networks that they need
        self._running = 0
        search = self._search()
        confirmations = self._listed(self._to_be_confirmed, "Confirmation of the Pareto fronts")
        final_tests = self._listed(self._to_be_tested, "Test images")
        self._phases = deque[Iterator[Job | Wait]]([search, confirmations, final_tests])

    @property
    def nothing_left(self) -> bool:
        """Whether every trial has been proposed and run, and the Pareto fronts tested."""
        return not (self._trials.left or self._to_be_confirmed() or self._to_be_tested())

    @property
    def n_jobs(self) -> float:
        """About how many there are."""
        return self._trials.left + len(self._plan.dense_networks)

    def ask(self) -> Job | Wait | None:
        """The next job; None after the last, and `WAIT` where one that runs must end first."""
        while self._phases:
            job = next(self._phases[0], None)
            if isinstance(job, Wait) or (job is None and self._running):
                return WAIT
            if job is None:
                self._phases.popleft()
                continue
            self._running += 1
            return job
        return None

    def tell(self, job: Job, outcome: Outcome) -> None:
        """How a job ended."""
        self._running -= 1
        if isinstance(job, DenseNetwork):
            error = None
            if isinstance(outcome, Lost):
                error = f"Its dense network ({job_name(job)}) failed: {outcome.error}"
            self._networks.ended(job, error)
        trial = trial_of(job)
        if trial is None or trial.phase != "search":
            return
        if isinstance(outcome, TrialResult):
            self._trials.tell(trial.trial_id, outcome.row)
        elif isinstance(outcome, Lost) and outcome.status == "failed":  # a stopped one is resumed
            self._trials.tell(trial.trial_id, {"status": "failed", "error": outcome.error})

    def _search(self) -> Iterator[Job | Wait]:
        self._on_phase("Trials", self._trials.left)
        while (job := self._network_or_trial()) is not None:
            yield job

    def _network_or_trial(self) -> Job | Wait | None:
        """A dense network, or a trial of the search that has all its networks."""
        while True:
            network = self._networks.next()
            if network is not None:
                return network
            for entry in self._waiting:
                trial, needed = entry
                error = self._networks.error(needed)
                if error is not None or self._networks.are_there(needed):
                    self._waiting.remove(entry)
                    return trial if error is None else FailedTrial(trial, error)
            if len(self._waiting) == MOST_WAITING:
                return WAIT
            asked = self._trials.ask(new=self._may_start())
            if asked is None:
                return WAIT if self._waiting else None
            self._waiting.append((asked, self._networks.add(networks_of(asked))))

    def _listed(self, jobs: Callable[[], Sequence[Job]], title: str) -> Iterator[Job]:
        """The jobs of a later part, which are known once it begins."""
        found = jobs()
        if found:
            self._on_phase(title, len(found))
        yield from found

    def _to_be_confirmed(self) -> list[Trial]:
        """The trials on a Pareto front with the fresh seeds that they still lack."""
        sweep, rows = self._plan.sweep, self._table()
        if not sweep.confirm:
            return []
        wanted = [self._trial(id, rows) for id in to_be_confirmed(rows, sweep.objectives)]
        done = set(rows["trial_id"])
        again = confirmations(wanted, sweep.fresh_seeds)
        return [trial for trial in again if trial.trial_id not in done]

    def _to_be_tested(self) -> list[FinalTest]:
        """The networks that have not met the test images."""
        rows = self._table()
        tested = set(rows["trial_id"][rows["test_accuracy"].notna()])
        wanted = to_be_tested(rows, self._plan.sweep.objectives)
        return [FinalTest(self._trial(id, rows)) for id in wanted if id not in tested]

    def _trial(self, trial_id: str, rows: pd.DataFrame) -> Trial:
        row = rows[rows["trial_id"] == trial_id].iloc[0]
        if row["phase"] == "confirmation":
            return confirmation(self._trial(row["confirms"], rows), int(row["seed"]))
        return self._trials.trial(trial_id)


class _Networks:
    """Dense networks: to be trained, in training, trained or failed."""

    def __init__(self, known: Iterable[DenseNetwork]) -> None:
        self._untrained: dict[str, DenseNetwork] = {}
        self._training: set[str] = set()
        self._trained: set[str] = set()
        self._failed: dict[str, str] = {}
        self.add(known)

    def add(self, networks: Iterable[DenseNetwork]) -> list[str]:
        """Adds what a trial needs, teachers before their students; returns their keys."""
        by_key = {_key(network): network for network in networks}
        for key, network in by_key.items():
            if not (key in self._training or key in self._trained or key in self._failed):
                self._untrained.setdefault(key, network)
        return list(by_key)

    def next(self) -> DenseNetwork | None:
        """The first that has its teacher. With a failed teacher it has failed itself."""
        for key, network in list(self._untrained.items()):
            teacher = network.teacher and _key(network.teacher)
            if teacher in self._failed:
                self._failed[key] = self._failed[teacher]
                del self._untrained[key]
            elif teacher is None or teacher in self._trained:
                self._training.add(key)
                return self._untrained.pop(key)
        return None

    def ended(self, network: DenseNetwork, error: str | None) -> None:
        key = _key(network)
        self._training.discard(key)
        if error is None:
            self._trained.add(key)
        else:
            self._failed[key] = error

    def are_there(self, keys: Iterable[str]) -> bool:
        return self._trained.issuperset(keys)

    def error(self, keys: Iterable[str]) -> str | None:
        """Why one of them will never be there, if so."""
        return next((self._failed[key] for key in keys if key in self._failed), None)


def _key(network: DenseNetwork) -> str:
    return network.model_dump_json()
