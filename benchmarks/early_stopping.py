"""What early stopping saves and what it costs, on learning curves that were recorded once.

    python -m benchmarks.early_stopping
    python -m benchmarks.early_stopping --record     # trains the recorded trials anew: some minutes

The curves are those of real trials of every method, trained to their end (`recorded_curves`), with
other seeds (dense network, split, options drawn) than those that the settings were chosen on. With
each of 20 seeds the trials of every study start in another order, four at a time and not equally
fast, and are judged at the rungs of a sweep. Epochs saved are those of the fine-tuning; the
hypervolume is that of the trials that come to their end, over that of all. Stopping at random ends
as many trials at the same rungs, drawn from all.
"""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.recorded_curves import CURVES, SWEEP_FILE, record
from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.analysis.pareto import hypervolume
from orchestrator.search.successive_halving import RungsInMemory, SuccessiveHalving
from orchestrator.sweep_file import EarlyStopping, Sweep, load_sweep

AT_A_TIME = 4
SEEDS = range(20)
CHOSEN_ON = 0  # the seed of the recorded trials that `EarlyStopping`'s defaults were chosen on
GOALS = {
    "epochs saved": Goal(at_least=0.4),
    "hypervolume kept": Goal(at_least=0.98),
    "over stopping at random": Goal(at_least=1.0),
}


@dataclass(frozen=True)
class Curve:
    """A recorded trial."""

    n_epochs: int
    """Fewer than the others' if it diverged."""
    figures: Mapping[int, Mapping[str, float]]
    """Those after each epoch, but for epochs in which a method is not judged."""
    row: Mapping[str, object]
    """What it came to, failed if it diverged."""


Stops = dict[str, int]
"""trial_id -> the epochs after which it was stopped."""


def read_curves(path: Path, sweep: Sweep) -> dict[str, dict[str, Curve]]:
    """Study -> trial_id -> curve."""
    table = pd.read_csv(path)
    found: dict[str, dict[str, Curve]] = {}
    for (study, trial_id), rows in table.groupby(["study", "trial_id"], sort=False):
        epochs = rows[rows["epoch"].notna()].set_index("epoch")[list(sweep.objectives)]
        figures = {
            int(epoch): dict(zip(sweep.objectives, values, strict=True))
            for epoch, values in zip(epochs.index, epochs.to_numpy(), strict=True)
        }
        completed = bool(rows["epoch"].isna().any())
        end = {str(name): value for name, value in rows.iloc[-1].items()}
        row = {**end, "status": "completed" if completed else "failed", "phase": "search"}
        found.setdefault(str(study), {})[str(trial_id)] = Curve(max(figures), figures, row)
    return found


def replay(
    curves: Mapping[str, Curve], rule: SuccessiveHalving, settings: EarlyStopping, seed: int
) -> Stops:
    """Which trials of a study are stopped, and when, if they start in the order of this seed."""
    generator = np.random.default_rng(seed)
    waiting = list(generator.permutation(list(curves)))
    seconds = dict(zip(waiting, generator.uniform(0.7, 1.3, len(waiting)), strict=True))
    most = max(curve.n_epochs for curve in curves.values())
    judged = settings.rungs(most)
    rungs = RungsInMemory()
    stops: Stops = {}
    running: list[tuple[float, str, int]] = []  # when the next epoch ends, of which trial, which
    now = 0.0
    while waiting or running:
        while waiting and len(running) < AT_A_TIME:
            trial = waiting.pop(0)
            heapq.heappush(running, (now + seconds[trial], trial, 1))
        now, trial, epoch = heapq.heappop(running)
        curve = curves[trial]
        if epoch > curve.n_epochs:
            continue  # it had come to its end
        at_rung = epoch in judged and epoch in curve.figures
        if at_rung and not rule.goes_on(rungs, "", epoch, trial, curve.figures[epoch]):
            stops[trial] = epoch
        else:
            heapq.heappush(running, (now + seconds[trial], trial, epoch + 1))
    return stops


def at_random(curves: Mapping[str, Curve], stops: Stops, seed: int) -> Stops:
    """As many stops after as many epochs, of trials drawn at random."""
    generator = np.random.default_rng(seed)
    drawn: Stops = {}
    for epoch in sorted(stops.values(), reverse=True):
        candidates = [t for t in curves if t not in drawn and curves[t].n_epochs >= epoch]
        drawn[str(generator.choice(candidates))] = epoch
    return drawn


def saved(curves: Mapping[str, Curve], stops: Stops) -> int:
    """Epochs that were not trained."""
    return sum(curves[trial].n_epochs - epoch for trial, epoch in stops.items())


def volume(curves: Mapping[str, Curve], stops: Stops, sweep: Sweep) -> float:
    rows = [curve.row for trial, curve in curves.items() if trial not in stops]
    return hypervolume(pd.DataFrame(rows), sweep.objectives) if rows else 0.0


@dataclass(frozen=True)
class Outcome:
    """Shares: of epochs saved, and of the hypervolume kept, summed over the studies."""

    saved: float
    kept: float
    kept_at_random: float


def outcome(
    curves: Mapping[str, Mapping[str, Curve]], sweep: Sweep, settings: EarlyStopping, seed: int
) -> Outcome:
    """Of all studies with one seed."""
    epochs = spared = whole = kept = kept_at_random = 0.0
    rule = SuccessiveHalving(sweep.objectives, settings.reduction)
    for trials in curves.values():
        stops = replay(trials, rule, settings, seed)
        drawn = at_random(trials, stops, seed)
        epochs += sum(curve.n_epochs for curve in trials.values())
        spared += saved(trials, stops)
        whole += volume(trials, {}, sweep)
        kept += volume(trials, stops, sweep)
        kept_at_random += volume(trials, drawn, sweep)
    return Outcome(spared / epochs, kept / whole, kept_at_random / whole)


def compare(settings: EarlyStopping | None = None, seeds: Sequence[int] = SEEDS) -> Result:
    """The settings, the sweep file's own defaults if None, on the curves of held-out seeds."""
    sweep = load_sweep(SWEEP_FILE)
    settings = settings or EarlyStopping()
    chosen_on: dict[str, dict[str, Curve]] = {}
    curves: dict[str, dict[str, Curve]] = {}
    for study, trials in read_curves(CURVES, sweep).items():
        (chosen_on if study.endswith(f"-s{CHOSEN_ON}") else curves)[study] = trials
    found = [outcome(curves, sweep, settings, seed) for seed in seeds]
    before = [outcome(chosen_on, sweep, settings, seed) for seed in seeds]
    kept = statistics.mean(one.kept for one in found)
    random = statistics.mean(one.kept_at_random for one in found)
    n_trials = sum(map(len, curves.values()))
    notes = {
        "curves": f"{n_trials} trials of {len(curves)} studies, {len(found)} orders",
        "settings": f"min_epochs {settings.min_epochs}, reduction {settings.reduction:g}",
        "hypervolume kept": (
            f"{min(one.kept for one in found):.4f} to {max(one.kept for one in found):.4f} over "
            f"the orders; stopping at random keeps {random:.4f}"
        ),
        "the trials that the settings were chosen on": (
            f"{statistics.mean(one.saved for one in before):.3f} saved, "
            f"{statistics.mean(one.kept for one in before):.4f} kept, "
            f"{statistics.mean(one.kept_at_random for one in before):.4f} at random"
        ),
    }
    ratios = {
        "epochs saved": statistics.mean(one.saved for one in found),
        "hypervolume kept": kept,
        "over stopping at random": kept / random,
    }
    return Result("early_stopping", ratios, GOALS, notes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--record", action="store_true", help="record the curves anew, first")
    args = parser.parse_args()
    if args.record:
        record()
    show(compare(), args.json)


if __name__ == "__main__":
    main()
