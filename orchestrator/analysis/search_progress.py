"""Progress of a search: what each study tried, in order, beside random search of as many tries.

Random search is simulated, as its networks were not trained: accuracy and cost between two tries
are read from the straight line that joins them. That asks for studies of one range of numbers.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import chance, growing_volume, shares
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.run_folder.trials_table import option_column
from orchestrator.sweep_file.grids_and_ranges import Range

FEWEST_TRIES = 4  # of a study that is shown
SIMULATED = 50  # random searches, whose mean is taken


def search_progress(result: SweepResult) -> pd.DataFrame:
    """The hypervolume after each try of every study, in the order in which they were proposed.

    Columns: study, cell, method, seed, number (from 1), trial_id, settings, hypervolume (of the
    tries so far), random (the mean of as many random tries; missing where that cannot be told).
    """
    parts = [_progress(result, str(name), rows) for name, rows in _searching(result)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _searching(result: SweepResult) -> Iterator[tuple[str, pd.DataFrame]]:
    """The studies that had tries to choose, each with its rows in order."""
    for name, rows in result.searched.groupby("study", sort=False):
        if len(rows) >= FEWEST_TRIES:
            yield str(name), rows.sort_values("trial_id", kind="stable")


def _progress(result: SweepResult, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    points, guess = shares(rows, result.objectives), chance(result.searched)
    covered = growing_volume(points, result.objectives, guess)
    found = _one_range(result, rows)
    by_chance = [math.nan] * len(rows)
    if found is not None:
        by_chance = _random_search(result, rows, points, *found, guess)
    return pd.DataFrame(
        {
            "study": name,
            "cell": rows["cell"].to_numpy(),
            "method": rows["method"].to_numpy(),
            "seed": rows["seed"].to_numpy(),
            "number": range(1, len(rows) + 1),
            "trial_id": rows["trial_id"].to_numpy(),
            "settings": [result.settings(row) for row in rows.to_dict("records")],
            "hypervolume": covered,
            "random": by_chance,
        }
    )


def _one_range(result: SweepResult, rows: pd.DataFrame) -> tuple[str, Range] | None:
    """The column and the range of what a study searches, if that is one range of numbers."""
    searched = searched_ranges(result, rows)
    if len(searched) != 1:
        return None
    ((column, found),) = searched.items()
    if found.kind == "choice" or found.when or rows[column].isna().any():
        return None
    return column, found


def searched_ranges(result: SweepResult, rows: pd.DataFrame) -> dict[str, Range]:
    """What a study searches: the columns of its options, and their ranges.

    Args:
        rows: of one study.
    """
    method = str(rows["method"].iloc[0])
    return {
        option_column(".".join(map(str, key))): found
        for key, found in result.varied(rows.iloc[0]).items()
        if isinstance(found, Range) and (key[0] != "methods" or key[1] == method)
    }


def _random_search(
    result: SweepResult,
    rows: pd.DataFrame,
    points: np.ndarray,
    column: str,
    found: Range,
    guess: float,
) -> list[float]:
    """The mean hypervolume after each of as many random tries, on lines between those that ran."""
    known = np.isfinite(points).all(axis=1)
    if known.sum() < 2:
        return [math.nan] * len(rows)
    scale = np.log if found.kind == "log_uniform" else np.asarray
    places = scale(np.abs(rows[column].to_numpy(dtype=float)[known]))
    order = np.argsort(places, kind="stable")
    low, high = np.sort(scale(np.abs(np.array(found.drawn, dtype=float))))
    generator = np.random.default_rng(0)
    drawn = generator.uniform(low, high, (SIMULATED, len(rows)))
    read = np.stack(
        [np.interp(drawn, places[order], values[order]) for values in points[known].T], axis=-1
    )
    volumes = [growing_volume(each, result.objectives, guess) for each in read]
    by_chance: list[float] = np.mean(volumes, axis=0).tolist()
    return by_chance
