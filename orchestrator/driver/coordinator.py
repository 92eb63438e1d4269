"""The coordinator: which job of a sweep is next.

Dense networks come first, each trial when its networks are there, and the stage that it shares with
others; then the confirmations of the Pareto fronts, likewise; then the networks that meet the test
images. Each part begins when all jobs of the one before have ended.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Protocol

import pandas as pd

from orchestrator.analysis.pareto import to_be_confirmed, to_be_tested
from orchestrator.plan import (
    DenseNetwork,
    Plan,
    SharedStage,
    Trial,
    confirmation,
    confirmations,
    networks_of,
    shared_stage,
)
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
"""Trials that may wait for what they need: each was proposed without hearing of those before it."""


class Wait(Enum):
    """In place of a job: there is none until one that is running has ended."""

    WAIT = "wait"


WAIT = Wait.WAIT

Needed = DenseNetwork | SharedStage
"""What must be there before a trial can run."""

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
        self._needed = _AllNeeded(plan.dense_networks)
        self._may_start = may_start
        self._waiting: list[tuple[Trial, list[str]]] = []  # with the keys of what they need
        self._running = 0
        phases = self._search(), self._confirmations(), self._final_tests()
        self._phases = deque[Iterator[Job | Wait]](phases)

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
            self._needed.ended(job, error)
        elif isinstance(job, SharedStage):
            # Where it failed each of its trials tries it once more, and ends with an error of its
            # own: it may have failed for options of the one that it was made for.
            self._needed.ended(job, None)
        trial = trial_of(job)
        if trial is None or trial.phase != "search":
            return
        if isinstance(outcome, TrialResult):
            self._trials.tell(trial.trial_id, outcome.row)
        elif isinstance(outcome, Lost) and outcome.status == "failed":  # a stopped one is resumed
            self._trials.tell(trial.trial_id, {"status": "failed", "error": outcome.error})

    def _search(self) -> Iterator[Job | Wait]:
        self._on_phase("Trials", self._trials.left)
        yield from self._as_they_can_run(lambda: self._trials.ask(new=self._may_start()))

    def _confirmations(self) -> Iterator[Job | Wait]:
        again = deque(self._to_be_confirmed())
        if again:
            self._on_phase("Confirmation of the Pareto fronts", len(again))
        yield from self._as_they_can_run(lambda: again.popleft() if again else None)

    def _final_tests(self) -> Iterator[Job]:
        found = self._to_be_tested()
        if found:
            self._on_phase("Test images", len(found))
        yield from found

    def _as_they_can_run(self, ask: Callable[[], Trial | None]) -> Iterator[Job | Wait]:
        """Trials, and before each what it needs.

        Args:
            ask: for the next trial; None after the last.
        """
        while (job := self._needed_or_trial(ask)) is not None:
            yield job

    def _needed_or_trial(self, ask: Callable[[], Trial | None]) -> Job | Wait | None:
        """What some trial needs, or a trial that has all that it needs."""
        while True:
            needed = self._needed.next()
            if needed is not None:
                return needed
            for entry in self._waiting:
                trial, keys = entry
                error = self._needed.error(keys)
                if error is not None or self._needed.are_there(keys):
                    self._waiting.remove(entry)
                    return trial if error is None else FailedTrial(trial, error)
            if len(self._waiting) == MOST_WAITING:
                return WAIT
            asked = ask()
            if asked is None:
                return WAIT if self._waiting else None
            self._waiting.append((asked, self._needed.add(_needed_by(asked))))

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


def _needed_by(trial: Trial) -> list[Needed]:
    """What must be there before a trial can run, what others need before these."""
    stage = shared_stage(trial)
    return [*networks_of(trial), *([stage] if stage else [])]


class _AllNeeded:
    """Dense networks and shared stages: to be made, in the making, there or failed."""

    def __init__(self, known: Iterable[DenseNetwork]) -> None:
        self._to_be_made: dict[str, Needed] = {}
        self._in_the_making: set[str] = set()
        self._there: set[str] = set()
        self._failed: dict[str, str] = {}
        self.add(known)

    def add(self, needed: Iterable[Needed]) -> list[str]:
        """Adds what a trial needs; returns its keys."""
        by_key = {_key(each): each for each in needed}
        for key, each in by_key.items():
            if not (key in self._in_the_making or key in self._there or key in self._failed):
                self._to_be_made.setdefault(key, each)
        return list(by_key)

    def next(self) -> Needed | None:
        """The first that has all that it needs itself. Where that has failed, so has this."""
        for key, each in list(self._to_be_made.items()):
            before = _needed_before(each)
            if (error := self.error(before)) is not None:
                self._failed[key] = error
                del self._to_be_made[key]
            elif self.are_there(before):
                self._in_the_making.add(key)
                return self._to_be_made.pop(key)
        return None

    def ended(self, needed: Needed, error: str | None) -> None:
        key = _key(needed)
        self._in_the_making.discard(key)
        if error is None:
            self._there.add(key)
        else:
            self._failed[key] = error

    def are_there(self, keys: Iterable[str]) -> bool:
        return self._there.issuperset(keys)

    def error(self, keys: Iterable[str]) -> str | None:
        """Why one of them will never be there, if so."""
        return next((self._failed[key] for key in keys if key in self._failed), None)


def _key(needed: Needed) -> str:
    return needed.key if isinstance(needed, SharedStage) else needed.model_dump_json()


def _needed_before(needed: Needed) -> list[str]:
    """The keys of what must be there before it can be made."""
    if isinstance(needed, SharedStage):
        return [_key(network) for network in networks_of(needed.trial)]
    return [_key(needed.teacher)] if needed.teacher else []
