"""Optuna proposes: a study for every study of the plan, asked for trials and told of their rows.

Studies are worked in the plan's order, but the next trial is asked of the first study that has none
running: a sampler that learns then knows all its study's results when it proposes, as long as there
are as many studies as there are cores.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.plan import Study, Trial
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.option_values import Range

# Chosen on a recorded surface (`benchmarks/sampler_hypervolume.py`), with other seeds than the
# benchmark's: Optuna's own for two objectives (10 random tries, each option by itself, the best of
# 24 candidates) did no better there than random search in 20 tries, and started late in 10.
TPE_SETTINGS: dict[str, Any] = {
    "n_startup_trials": 5,
    "multivariate": True,
    "n_ei_candidates": 12,
}


class Proposer:
    """Proposes the trials of all studies, and learns from their rows."""

    def __init__(
        self,
        studies: Sequence[Study],
        objectives: Mapping[str, str],
        search: Search,
        storage: BaseStorage,
    ) -> None:
        """
        Args:
            studies: in the order in which they are worked.
            objectives: column of the row -> "maximize" or "minimize".
            search: which sampler, and the seed that every study's own is made of.
            storage: keeps what was proposed and told; see `open_journal`.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study and trial
        self._waiting = [_Asked(study, objectives, search, storage) for study in studies]
        self._running: dict[str, _Asked] = {}

    def ask(self) -> Trial | None:
        """The next trial, or None where no study has any left."""
        if not self._waiting:
            return None
        fewest = min(self._waiting, key=lambda asked: (len(asked.running), asked.turn))
        trial = fewest.ask()
        self._running[trial.trial_id] = fewest
        if fewest.left == 0:
            self._waiting.remove(fewest)
        return trial

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """How a trial ended.

        One that was stopped early is told as pruned, without values: its figures there are not what
        it would have come to. A row that is not completed otherwise, or lacks a finite value for an
        objective, is told as failed, so that no trial is left running for ever.
        """
        self._running.pop(trial_id).tell(trial_id, row)


class _Asked:
    """One study: what it still may propose, and its trials that are running."""

    def __init__(
        self, study: Study, objectives: Mapping[str, str], search: Search, storage: BaseStorage
    ) -> None:
        self.left = n_tries(study, search)
        self.turn = 0  # where the hours may end before the trials, no study is worked before others
        self.running: dict[str, optuna.Trial] = {}
        self._study = study
        self._objectives = objectives
        self._search = search
        self._storage = storage
        self._optuna: optuna.Study | None = None  # made with its first trial

    def ask(self) -> Trial:
        if self._optuna is None:
            self._optuna = optuna.create_study(
                study_name=self._study.name,
                storage=self._storage,
                sampler=make_sampler(self._study, self._search),
                directions=[StudyDirection[d.upper()] for d in self._objectives.values()],
            )
        asked = self._optuna.ask()
        values = self._study.values(partial(_suggest, asked))
        trial = self._study.trial(asked.number, values)
        asked.set_user_attr("trial_id", trial.trial_id)
        self.running[trial.trial_id] = asked
        self.left -= 1
        self.turn += self._search.hours is not None
        return trial

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        assert self._optuna is not None
        asked = self.running.pop(trial_id)
        error = _why_failed(row, self._objectives)
        if row["status"] == "stopped_early":
            stopped_at = {name: row[name] for name in ("epochs_spent", *self._objectives)}
            asked.set_user_attr("stopped_at", stopped_at)
            self._optuna.tell(asked, state=TrialState.PRUNED)
        elif error is None:
            self._optuna.tell(asked, [float(row[name]) for name in self._objectives])
        else:
            asked.set_user_attr("error", error)
            self._optuna.tell(asked, state=TrialState.FAIL)


def open_journal(path: Path) -> JournalStorage:
    """The file of all studies of a sweep, in the format of Optuna's `JournalFileBackend`."""
    return _JournalStorage(_Journal(path))


class _JournalStorage(JournalStorage):
    """Optuna's storage, without its search for enqueued trials, of which a sweep has none.

    At every ask it would go through all trials: 4 ms more a trial, in the mean over 10,000.
    """

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):
            return []
        return super().get_all_trials(study_id, deepcopy, states)


class _Journal(JournalFileBackend):
    """Optuna's journal file without its lock and without waiting for the disk at every line.

    A trial of two options writes five lines: 7 ms with both, 1 ms like this. A sweep has one
    driver, which needs no lock, and what the system was given outlives the driver, if not the
    machine.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with self._path.open("ab", buffering=0) as file:
            file.write("".join(lines).encode())


def n_tries(study: Study, search: Search) -> float:
    """How many trials a study gets: what the sweep asks for, but no point of a grid twice.

    Infinite where the hours alone are the bound.
    """
    if search.sampler != "grid":
        return study.n_trials
    return min(study.n_trials, len(_grid(study, study.n_trials)))


def make_sampler(study: Study, search: Search) -> BaseSampler:
    """The sampler of one study, seeded by the search's seed and the study's name."""
    digest = hashlib.sha256(f"{search.seed} {study.name}".encode()).digest()
    seed = int.from_bytes(digest[:4])
    match search.sampler:
        case "tpe":
            # By itself it would take each option that is not searched in every trial alone.
            conditional = any(r.when for r in study.ranges.values())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # which groups are
                return TPESampler(seed=seed, group=conditional, **TPE_SETTINGS)
        case "nsga2":
            # The first generation is random. Optuna's 50 would leave small searches no second one;
            # a quarter of the tries leaves three to breed. More than 50 only slow large ones down.
            population = max(2, min(study.n_trials, 200) // 4)
            return NSGAIISampler(seed=seed, population_size=int(population))
        case "random":
            return _ByNumber(lambda number: _random_options(study.ranges, seed, number))
        case "grid":
            points = _grid(study, study.n_trials)
            order = np.random.default_rng(seed).permutation(len(points))
            return _ByNumber(lambda number: points[order[number]])
    raise ValueError(f"Expected the sampler tpe, nsga2, random or grid, got {search.sampler!r}.")


class _ByNumber(BaseSampler):
    """Options that follow from a trial's number, in whatever order results come back.

    Optuna's RandomSampler draws from one stream, so that its options depend on the order of the
    asks; its GridSampler writes the whole grid with every trial and cannot be asked and told
    (it stops the study at its last point, which Optuna refuses outside `Study.optimize`).
    """

    def __init__(self, options: Callable[[int], Mapping[str, Any]]) -> None:
        self._options = options

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._options(trial.number)[param_name]


def _random_options(ranges: Mapping[str, Range], seed: int, number: int) -> dict[str, Any]:
    """One value of each range, drawn from the seed and the trial's number alone."""
    generator = np.random.default_rng([seed, number])
    return {name: _at(r, generator.random()) for name, r in ranges.items()}


def _at(r: Range, share: float) -> Any:
    """The value that lies `share` (0 <= share < 1) of the way through a range."""
    if r.kind == "choice":
        return r.choices[int(share * len(r.choices))]
    assert r.low is not None and r.high is not None
    match r.kind:
        case "int":
            return int(r.low) + int(share * (r.high - r.low + 1))
        case "log_uniform":
            return r.low * (r.high / r.low) ** share
        case "uniform":
            return r.low + (r.high - r.low) * share


def grid_sizes(ranges: Mapping[str, Range], n_tries: float) -> Iterator[dict[str, int]]:
    """How many points each range has in grids that grow, from one that might have `n_tries` points.

    A choice has all its values. One more point goes to a range that has the fewest, the first of
    equals; the last grid is the one where no range has more values to give.
    """
    sizes = {name: len(r.choices) if r.kind == "choice" else 1 for name, r in ranges.items()}
    while True:
        if math.prod(sizes.values()) >= n_tries:
            yield sizes
        growing = [name for name in ranges if sizes[name] < _n_values(ranges[name])]
        if not growing:
            break
        sizes[min(growing, key=sizes.__getitem__)] += 1
    yield sizes


def _grid(study: Study, n_tries: float) -> list[dict[str, Any]]:
    """Every point of the smallest grid of `n_tries` points, or of the largest there is.

    Each range's values lie at equal distances, its two ends included. Points that differ in options
    that are not searched there are one.
    """
    for sizes in grid_sizes(study.ranges, n_tries):
        points: list[dict[str, Any]] = [{}]
        for name, size in sizes.items():
            values = _spread(study.ranges[name], size)
            points = [{**point, name: value} for point in points for value in values]
        if any(r.when for r in study.ranges.values()):
            searched = [study.values(partial(_at_point, point)) for point in points]
            points = list({repr(point): point for point in searched}.values())
        if len(points) >= n_tries:
            break
    return points


def _at_point(point: Mapping[str, Any], name: str, r: Range) -> Any:
    return point[name]


def _spread(r: Range, size: int) -> list[Any]:
    """`size` values at equal distances (log_uniform: at equal ratios); one alone is the middle."""
    if r.kind == "choice":
        return list(r.choices)
    assert r.low is not None and r.high is not None
    if size == 1:
        return [_at(r, 0.5)]
    match r.kind:
        case "int":
            return [round(value) for value in np.linspace(r.low, r.high, size)]
        case "log_uniform":
            return np.geomspace(r.low, r.high, size).tolist()
        case "uniform":
            return np.linspace(r.low, r.high, size).tolist()


def _n_values(r: Range) -> float:
    """How many different values a range has."""
    if r.kind == "choice":
        return len(r.choices)
    assert r.low is not None and r.high is not None
    return r.high - r.low + 1 if r.kind == "int" else math.inf


def _suggest(asked: optuna.Trial, name: str, r: Range) -> Any:
    """A value of the range."""
    if r.kind == "choice":
        return asked.suggest_categorical(name, r.choices)
    assert r.low is not None and r.high is not None
    if r.kind == "int":
        return asked.suggest_int(name, int(r.low), int(r.high))
    return asked.suggest_float(name, r.low, r.high, log=r.kind == "log_uniform")


def _why_failed(row: Mapping[str, Any], objectives: Mapping[str, str]) -> str | None:
    """None if the row can be told as completed."""
    if row["status"] != "completed":
        return str(row.get("error") or row["status"])
    for name in objectives:
        value = row.get(name)
        if value is None or not math.isfinite(value):
            return f"The objective {name} is {value}."
    return None
