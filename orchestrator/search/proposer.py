"""Optuna proposes: a study for every study of the plan, asked for trials and told of their rows.

Studies are worked in the plan's order, but the next trial is asked of the first study that has none
running: a sampler that learns then knows all its study's results when it proposes, as long as there
are as many studies as there are cores.

The rungs that trials came to are kept on the Optuna trials too: the studies are all that a search
resumes from.
"""

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.plan import Study, Trial, n_tries
from orchestrator.run_folder.reader import searched_values
from orchestrator.search.samplers import ByNumber, make_sampler
from orchestrator.search.successive_halving import Arrival, RungsInMemory
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.grids_and_ranges import Range

RUNG = "rung after epoch "
"""Begins the name of a note on an Optuna trial: an `Arrival`."""


class Proposer:
    """Proposes the trials of all studies, and learns from their rows."""

    def __init__(
        self,
        studies: Sequence[Study],
        objectives: Mapping[str, str],
        search: Search,
        storage: BaseStorage,
        rows: Mapping[str, Mapping[str, Any]] | None = None,
        prefix: str = "",
    ) -> None:
        """
        Args:
            studies: in the order in which they are worked.
            objectives: column of the row -> "maximize" or "minimize".
            search: which sampler, and the seed that every study's own is made of.
            storage: keeps what was proposed and told; see `study_storage`. What it holds already
                is resumed.
            rows: trial_id -> row of the trials that have ended already. Others that were proposed
                are the first to be proposed again, as they were.
            prefix: of the studies' names in a storage that sweeps share.

        Raises:
            ValueError: if a row's trial is not in the storage and cannot be told to it.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study and trial
        self._studies = {
            study.name: _Asked(
                study, n_tries(study, search), objectives, search, storage, prefix + study.name
            )
            for study in studies
        }
        kept = set(optuna.get_all_study_names(storage))
        ended: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)  # by study
        for trial_id, row in (rows or {}).items():
            ended[row["study"]][trial_id] = row
        for name, asked in self._studies.items():
            if prefix + name in kept or name in ended:
                asked.take_up(ended[name])
        self._waiting = [asked for asked in self._studies.values() if asked.left]

    @property
    def left(self) -> float:
        """How many trials are still to be asked for."""
        return sum(asked.left for asked in self._waiting)

    def ask(self, new: bool = True) -> Trial | None:
        """The next trial, or None where no study has any left.

        Args:
            new: false for those alone that were proposed before, and not run to their ends.
        """
        waiting = self._waiting if new else [asked for asked in self._waiting if asked.stopped]
        if not waiting:
            return None
        fewest = min(waiting, key=lambda asked: (len(asked.running), asked.turn))
        trial = fewest.ask()
        if fewest.left == 0:
            self._waiting.remove(fewest)
        return trial

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """How a trial ended.

        One that was stopped early is told as pruned, without values: its figures there are not what
        it would have come to. A row that is not completed otherwise, or lacks a finite value for an
        objective, is told as failed, so that no trial is left running for ever.
        """
        self._study_of(trial_id).tell(trial_id, row)

    def trial(self, trial_id: str) -> Trial:
        """A trial that was proposed."""
        return self._study_of(trial_id).trial(trial_id)

    def arrivals(self, study: str, epochs: int) -> Mapping[str, Arrival]:
        """The trials of a study that came to the rung after so many epochs, by their ids."""
        return self._studies[study].rungs.arrivals(study, epochs)

    def keep(self, study: str, epochs: int, trial_id: str, arrival: Arrival) -> None:
        """Keeps on its Optuna trial that a trial came to a rung."""
        self._studies[study].keep(epochs, trial_id, arrival)

    def _study_of(self, trial_id: str) -> "_Asked":
        return self._studies[trial_id.rpartition("-")[0]]


@dataclass(eq=False)
class _Asked:
    """One study: what it still may propose, and its trials that are running."""

    study: Study
    n_tries: float
    objectives: Mapping[str, str]
    search: Search
    storage: BaseStorage
    name: str  # in the storage
    turn: int = 0  # where the hours may end before the trials, no study is worked before others
    running: set[str] = field(default_factory=set)  # ids of trials
    stopped: deque[str] = field(default_factory=deque)  # proposed, but not run to their ends
    rungs: RungsInMemory = field(default_factory=RungsInMemory)
    _proposed: dict[str, FrozenTrial] = field(default_factory=dict)  # as they then were

    @property
    def left(self) -> float:
        """How many trials it still gives."""
        return len(self.stopped) + max(0, self.n_tries - len(self._proposed))

    def take_up(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Brings the study and the rows of its trials together, and resumes from there.

        A driver that is killed leaves a trial without a row, or a row that was not told. A machine
        that fails may leave a row of a trial that the study has forgotten.
        """
        for frozen in self.opened.get_trials(deepcopy=False):
            trial_id = frozen.user_attrs.get("trial_id")
            if trial_id is not None:  # a failed trial's later success takes its place
                self._proposed[trial_id] = frozen
            elif frozen.state is TrialState.RUNNING:  # killed while it was proposed
                self.opened.tell(frozen.number, state=TrialState.FAIL)
        for trial_id, row in rows.items():
            if trial_id not in self._proposed:
                self._add(trial_id, row, self._signed(searched_values(self.study, row)))
            elif self._proposed[trial_id].state is TrialState.RUNNING:
                self.tell(trial_id, row)
        self.stopped.extend(sorted(self._proposed.keys() - rows.keys()))
        for trial_id, frozen in self._proposed.items():
            for name, kept in frozen.user_attrs.items():
                if name.startswith(RUNG):
                    epochs = int(name.removeprefix(RUNG))
                    self.rungs.keep(self.study.name, epochs, trial_id, Arrival(**kept))

    def ask(self) -> Trial:
        trial_id = self.stopped.popleft() if self.stopped else self._propose()
        self.running.add(trial_id)
        return self.trial(trial_id)

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        self.running.discard(trial_id)
        proposed = self._proposed[trial_id]
        state, values, notes = self._outcome(row)
        if proposed.state is TrialState.RUNNING:
            for name, note in notes.items():
                self.storage.set_trial_user_attr(proposed._trial_id, name, note)
            self.opened.tell(proposed.number, values, state)
        elif proposed.state is TrialState.FAIL and state is not TrialState.FAIL:
            self._add(trial_id, row, proposed.params)  # Optuna lets no failed trial succeed

    def keep(self, epochs: int, trial_id: str, arrival: Arrival) -> None:
        self.rungs.keep(self.study.name, epochs, trial_id, arrival)
        proposed = self._proposed[trial_id]
        if proposed.state is TrialState.RUNNING:  # Optuna changes no other
            note = asdict(arrival)
            self.storage.set_trial_user_attr(proposed._trial_id, f"{RUNG}{epochs}", note)

    def trial(self, trial_id: str) -> Trial:
        """A trial that was proposed."""
        number = int(trial_id.rpartition("-")[2])
        return self.study.trial(number, self._signed(self._proposed[trial_id].params))

    def _signed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as options, or options as its parameters: see `_distribution`."""
        ranges = self.study.ranges
        return {n: -value if _is_mirrored(ranges[n]) else value for n, value in params.items()}

    @cached_property
    def opened(self) -> optuna.Study:
        """Made with its first trial."""
        opened = optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            directions=[StudyDirection[d.upper()] for d in self.objectives.values()],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if opened.metric_names != [*self.objectives]:  # what dashboards call the values
                opened.set_metric_names([*self.objectives])
        begun = len(opened.get_trials(deepcopy=False))
        opened.sampler = make_sampler(self.study, self.search, begun)
        return opened

    @cached_property
    def _numbers(self) -> Iterator[int]:
        """Those that no trial has, from the first on. Only a failed machine leaves a gap."""
        return (n for n in count() if self.study.trial_id(n) not in self._proposed)

    def _propose(self) -> str:
        """The id of a new trial."""
        number = next(self._numbers)
        if isinstance(self.opened.sampler, ByNumber):
            self.opened.sampler.number = number
        asked, trial_id = self.opened.ask(), self.study.trial_id(number)
        self.study.values(lambda name, found: asked._suggest(name, _distribution(found)))
        asked.set_user_attr("trial_id", trial_id)
        self._proposed[trial_id] = self.storage.get_trial(asked._trial_id)
        self.turn += self.search.hours is not None
        return trial_id

    def _add(self, trial_id: str, row: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Tells a trial that the study does not have as running."""
        state, values, notes = self._outcome(row)
        ranges = self.study.ranges
        self._proposed[trial_id] = optuna.trial.create_trial(
            state=state,
            values=values,
            params=dict(params),
            distributions={name: _distribution(ranges[name]) for name in params},
            user_attrs={"trial_id": trial_id} | notes,
        )
        self.opened.add_trial(self._proposed[trial_id])

    def _outcome(
        self, row: Mapping[str, Any]
    ) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
        """How a trial ended: state, values if it has some, and what is noted beside them."""
        if row["status"] == "stopped_early":
            stopped_at = {name: float(row[name]) for name in ("epochs_spent", *self.objectives)}
            return TrialState.PRUNED, None, {"stopped_at": stopped_at}
        if row["status"] != "completed":
            return TrialState.FAIL, None, {"error": str(row.get("error") or row["status"])}
        for name in self.objectives:
            value = row.get(name)
            if value is None or not math.isfinite(value):
                return TrialState.FAIL, None, {"error": f"The objective {name} is {value}."}
        return TrialState.COMPLETE, [float(row[name]) for name in self.objectives], {}


def _is_mirrored(r: Range) -> bool:
    return r.kind == "log_uniform" and r.drawn[1] < 0


def _distribution(r: Range) -> BaseDistribution:
    """The range in Optuna's words, which has logarithms of positive values only.

    A `log_uniform` range below 0, as of RNP's penalty p, is that of the values without their sign.
    """
    if r.kind == "choice":
        return CategoricalDistribution(r.drawn)
    low, high = r.drawn if not _is_mirrored(r) else (-r.drawn[1], -r.drawn[0])
    if r.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=r.kind == "log_uniform")
