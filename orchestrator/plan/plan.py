"""The plan of a sweep, made once and passed on."""

from dataclasses import dataclass
from functools import cached_property

from orchestrator.plan.dense_networks import DenseNetwork, dense_networks
from orchestrator.plan.grid_points import n_tries
from orchestrator.plan.studies import Study, studies
from orchestrator.plan.trial import Trial
from orchestrator.sweep_file import Sweep, SweepFileError
from testbed.data import DataOptions


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of."""

    sweep: Sweep
    studies: tuple[Study, ...]
    """In the order in which they are worked."""
    dense_networks: tuple[DenseNetwork, ...]
    """Those known before the search, each once, teachers before students."""

    @cached_property
    def n_trials(self) -> float:
        """Of the search; infinite where the hours alone are the bound."""
        return sum(n_tries(study, self.sweep.search) for study in self.studies)

    @cached_property
    def splits(self) -> tuple[tuple[DataOptions, int], ...]:
        """The data and the seed of every split that trials and confirmations need, each once."""
        found: dict[tuple[str, int], tuple[DataOptions, int]] = {}
        for study in self.studies:
            data = DataOptions.model_validate(study.options["data"])
            for seed in (study.seed, *self.sweep.fresh_seeds):
                found.setdefault((data.model_dump_json(), seed), (data, seed))
        return tuple(found.values())

    @cached_property
    def by_name(self) -> dict[str, Study]:
        """The studies by their names."""
        return {study.name: study for study in self.studies}

    def plain_trials(self) -> list[Trial]:
        """The trials of a sweep that has values and grids only, for a machine without Optuna.

        Raises:
            ValueError: if an option is a range: names all that are.
        """
        ranges = {
            f"{name}: {found}": None
            for study in self.studies
            for name, found in study.ranges.items()
        }
        if ranges:
            raise ValueError(
                "expected values and grids only, since nothing searches here; these are ranges: "
                f"{'; '.join(ranges)}. Give each a value or a grid, in the file or with --set."
            )
        return [study.trial(0, {}) for study in self.studies]


def make_plan(sweep: Sweep) -> Plan:
    """Works a sweep out.

    Raises:
        SweepFileError: if a network's options do not go together, of which the sweep file's checks
            try but so many.
    """
    try:
        return Plan(sweep, tuple(studies(sweep)), tuple(dense_networks(sweep)))
    except ValueError as error:
        raise SweepFileError([str(error)]) from error
