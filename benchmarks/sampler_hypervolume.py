"""Which sampler finds the better frontier in few tries, on a surface that was recorded once.

    python -m benchmarks.sampler_hypervolume
    python -m benchmarks.sampler_hypervolume --record     # trains 729 networks: minutes

The surface is what real trials gave on a grid of three options (`benchmarks/surfaces/`); between
the grid's points it is interpolated. Every sampler of the search gets 20 tries with each of 20
seeds, asked and told as in a sweep. The ratio is that of the mean hypervolumes (as in the report:
of accuracy above chance, and multiplications as a share of the dense network's).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from optuna.storages import InMemoryStorage

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.analysis.pareto import hypervolume
from orchestrator.commands.sweep import main as sweep_main
from orchestrator.plan import Study, Trial, studies
from orchestrator.run_folder.trials_table import option_column, read_trials
from orchestrator.search.proposer import Proposer
from orchestrator.sweep_file import Search, Sweep, load_sweep

SWEEP_FILE = Path(__file__).parent / "surfaces" / "digits_l1.yaml"
SURFACE = SWEEP_FILE.with_suffix(".csv")
SAMPLERS = ("tpe", "nsga2", "random", "grid")
N_TRIES, N_SEEDS = 20, 20
FIGURES = ["val_accuracy", "multiplications"]  # empty where the training diverged
CONSTANTS = ["dense_multiplications", "classes"]


class Surface:
    """The rows that trials of one study would have, from those that were recorded."""

    def __init__(self, study: Study, recorded: pd.DataFrame) -> None:
        self.study = study
        self._constants = {name: recorded[name].dropna().iloc[0] for name in CONSTANTS}
        options = list(study.ranges)
        self._axes = [np.log(np.unique(recorded[name])) for name in options]
        in_order = recorded.sort_values(options)[FIGURES]
        self._values = in_order.to_numpy().reshape(*map(len, self._axes), len(FIGURES))

    def row(self, trial: Trial) -> dict[str, Any]:
        """The row of this trial; failed where one of the recorded trials around it failed."""
        point = [math.log(option(trial, name)) for name in self.study.ranges]
        figures = dict(zip(FIGURES, interpolate(self._axes, self._values, point), strict=True))
        failed = any(map(math.isnan, figures.values()))
        status = {"status": "failed" if failed else "completed", "phase": "search"}
        return {**status, **self._constants, **figures}


def interpolate(
    axes: Sequence[np.ndarray], values: np.ndarray, point: Sequence[float]
) -> list[float]:
    """Linear in each of the options in turn.

    Args:
        axes: of each option its recorded values, rising.
        values: (values of option 1, values of option 2, ..., figures)
        point: of each option the value asked for.
    """
    for axis, at in zip(axes, point, strict=True):
        left = min(max(int(np.searchsorted(axis, at)) - 1, 0), len(axis) - 2)
        share = min(max((at - axis[left]) / (axis[left + 1] - axis[left]), 0.0), 1.0)
        values = (1 - share) * values[left] + share * values[left + 1]
    return list(values.tolist())


def option(trial: Trial, name: str) -> float:
    """The value of the option with this dotted path in a sweep file."""
    if name.startswith("methods."):
        return float(trial.options[name.rpartition(".")[2]])
    return float(trial.option(name))


def search_hypervolume(surface: Surface, sweep: Sweep, sampler: str, seed: int) -> float:
    """The hypervolume of what one search finds."""
    search = Search(sampler=sampler, trials=N_TRIES, seed=seed)
    study = replace(surface.study, n_trials=N_TRIES)
    proposer = Proposer([study], sweep.objectives, search, InMemoryStorage())
    rows = []
    for trial in iter(proposer.ask, None):
        rows.append(surface.row(trial))
        proposer.tell(trial.trial_id, rows[-1])
    return hypervolume(pd.DataFrame(rows), sweep.objectives)


def compare(samplers: Sequence[str] = SAMPLERS) -> Result:
    """These samplers, random among them, on the recorded surface."""
    sweep = load_sweep(SWEEP_FILE)
    surface = Surface(studies(sweep)[0], pd.read_csv(SURFACE))
    found = {
        sampler: [search_hypervolume(surface, sweep, sampler, seed) for seed in range(N_SEEDS)]
        for sampler in samplers
    }
    random = found["random"]
    notes = {}
    for sampler, volumes in found.items():
        wins = sum(ours > theirs for ours, theirs in zip(volumes, random, strict=True))
        mean, deviation = statistics.mean(volumes), statistics.stdev(volumes)
        notes[sampler] = (
            f"hypervolume {mean:.4f} ± {deviation:.4f}, above random's with {wins} of {N_SEEDS} "
            f"seeds of {N_TRIES} tries"
        )
    ratios = {
        f"{sampler} over random": statistics.mean(volumes) / statistics.mean(random)
        for sampler, volumes in found.items()
        if sampler != "random"
    }
    default = Search().sampler
    goals = {f"{default} over random": Goal(at_least=1.0)}
    return Result("sampler_hypervolume", ratios, goals, notes)


def record() -> None:
    """Runs the trials of the grid, on all cores, and keeps what came out."""
    sweep = load_sweep(SWEEP_FILE)
    [study] = studies(sweep)
    with TemporaryDirectory() as name:
        status = sweep_main([str(SWEEP_FILE), "--output", name])
        trials = read_trials(Path(name) / sweep.name / "trials.csv")
    if status == 0:
        columns = {name: option_column(name) for name in study.ranges}
        columns |= {name: name for name in FIGURES + CONSTANTS}
        table = pd.DataFrame({name: trials[column] for name, column in columns.items()})
        table = table.sort_values(list(study.ranges))
        table.to_csv(SURFACE, index=False, float_format="%.10g")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--record", action="store_true", help="record the surface anew, first")
    args = parser.parse_args()
    if args.record:
        record()
    show(compare(), args.json)


if __name__ == "__main__":
    main()
