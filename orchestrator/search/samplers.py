"""Optuna's samplers as sweep files name them, and two of ours whose options follow from numbers."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from orchestrator.plan import Study
from orchestrator.plan.grid_points import grid_points, value_at
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.grids_and_ranges import Range

# Chosen on a recorded surface (`benchmarks/sampler_hypervolume.py`), with other seeds than the
# benchmark's: Optuna's own for two objectives (10 random tries, each option by itself, the best of
# 24 candidates) did no better there than random search in 20 tries, and started late in 10.
TPE_SETTINGS: dict[str, Any] = {
    "n_startup_trials": 5,
    "multivariate": True,
    "n_ei_candidates": 12,
}


def make_sampler(study: Study, search: Search, begun: int = 0) -> BaseSampler:
    """The sampler of one study, seeded by the search's seed and the study's name.

    Args:
        begun: how many trials the study has. A sampler that draws from one stream would draw the
            first ones again when a sweep is resumed.
    """
    seed = _seed(f"{search.seed} {study.name}")
    stream = _seed(f"{search.seed} {study.name} {begun}") if begun else seed
    match search.sampler:
        case "tpe":
            # By itself it would take each option that is not searched in every trial alone.
            conditional = any(r.when for r in study.ranges.values())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # which groups are
                return TPESampler(seed=stream, group=conditional, **TPE_SETTINGS)
        case "nsga2":
            # The first generation is random. Optuna's 50 would leave small searches no second one;
            # a quarter of the tries leaves three to breed. More than 50 only slow large ones down.
            population = max(2, min(study.n_trials, 200) // 4)
            return NSGAIISampler(seed=stream, population_size=int(population))
        case "random":
            return ByNumber(lambda number: _random_options(study.ranges, seed, number))
        case "grid":
            points = grid_points(study, study.n_trials)
            order = np.random.default_rng(seed).permutation(len(points))
            return ByNumber(lambda number: points[order[number]])
    raise ValueError(f"Expected the sampler tpe, nsga2, random or grid, got {search.sampler!r}.")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


class ByNumber(RandomSampler):
    """Options that follow from a trial's number, in whatever order results come back.

    Optuna's RandomSampler draws from one stream, so that its options depend on the order of the
    asks; its GridSampler writes the whole grid with every trial and cannot be asked and told
    (it stops the study at its last point, which Optuna refuses outside `Study.optimize`).
    """

    def __init__(self, options: Callable[[int], Mapping[str, Any]]) -> None:
        super().__init__()
        self._options = options
        self.number: int | None = None  # of the next trial; None takes Optuna's

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        number = trial.number if self.number is None else self.number
        value = self._options(number)[param_name]
        # Optuna searches a range below 0 by ratios without the sign (see `proposer`).
        return abs(value) if getattr(param_distribution, "log", False) else value


def _random_options(ranges: Mapping[str, Range], seed: int, number: int) -> dict[str, Any]:
    """One value of each range, drawn from the seed and the trial's number alone."""
    generator = np.random.default_rng([seed, number])
    return {name: value_at(r, generator.random()) for name, r in ranges.items()}
