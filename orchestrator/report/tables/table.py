"""A table of the report, as text that HTML and Markdown show alike."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from orchestrator.analysis.asked_budget import asked_of, share_said
from orchestrator.analysis.pareto import with_ratios
from orchestrator.analysis.sweep_result import Row, SweepResult
from orchestrator.analysis.uncertainty import FEW_SEEDS, t_interval
from orchestrator.formatting import (
    MISSING,
    accuracy,
    mean_and_deviation,
    millions,
    ratio,
)

WORDS = ("cell", "method", "settings", "setting", "trial")  # columns that hold words
FIGURES: dict[str, Callable[[Row], str]] = {  # a column's title -> what a row has there
    "seeds": lambda row: out_of(row["n"], row["tried"]),
    "n": lambda row: str(row["n"]),
    "validation": lambda row: _mean(row, "val"),
    "test": lambda row: _mean(row, "test"),
    "95 % interval": lambda row: interval(*t_interval(row["by_seed"])),
    "each seed": lambda row: each_seed(row["by_seed"]),
    "search's validation": lambda row: accuracy(row["search_val_accuracy"]),
    "on training images": lambda row: accuracy(row["train_accuracy"]),
    "mean": lambda row: millions(row["multiplications"]),
    "multiplications": lambda row: millions(row["multiplications"]),
    "of dense": lambda row: share_said(row["share"], row["asked"]),
    "not zero": lambda row: millions(row["nonzero_multiplications"]),
    "p5": lambda row: millions(row["multiplications_p5"]),
    "median": lambda row: millions(row["multiplications_p50"]),
    "p95": lambda row: millions(row["multiplications_p95"]),
    "mean of test images": lambda row: millions(row["test_multiplications"]),
    "parameters": lambda row: millions(number(row["parameters"])),
    "latency over dense": lambda row: ratio(row["latency_ratio"]),
    "at batch 128": lambda row: ratio(row["latency_ratio_batch128"]),
    "trial": lambda row: row["trial_id"],
}


class Table(NamedTuple):
    """A header and rows of text."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: set[int]
    """Places of the columns that hold words; the others hold figures and are set flush right."""
    best_rows: set[int]
    """Places of the rows to stand out."""

    @staticmethod
    def of(
        records: Sequence[Mapping[str, str]],
        words: Sequence[str] = WORDS,
        best_rows: Collection[int] = (),
    ) -> "Table":
        """A row for each record, which all have the same columns; one of nothing is left out."""
        names, nothing = records[0] if records else {}, ("", MISSING)
        header = tuple(
            name for name in names if any(record[name] not in nothing for record in records)
        )
        rows = [tuple(record[name] for name in header) for record in records]
        text_columns = {place for place, name in enumerate(header) if name in words}
        return Table(header, rows, text_columns, set(best_rows))


def trials_table(
    result: SweepResult, trials: pd.DataFrame, *titles: str, seed: bool = True
) -> Table:
    """A row for each of the trials, or of the points that are named by a trial.

    Args:
        titles: of `FIGURES`, the columns beside those of `which_trial`.
        seed: whether a row is of one seed.
    """
    if "share" not in trials:
        trials = with_ratios(trials)
    own = result.by_id.loc[trials["trial_id"]].to_dict("records")
    return Table.of(
        [
            which_trial(result, trial, seed=seed)
            | {title: FIGURES[title](row | {"asked": asked_of(trial)}) for title in titles}
            for trial, row in zip(own, trials.to_dict("records"), strict=True)
        ]
    )


def which_trial(result: SweepResult, trial: Row, *, seed: bool = True) -> dict[str, str]:
    """The first columns of a trial's row; a cell or a seed that all share is left empty."""
    several = seed and result.n_seeds > 1
    return {
        "cell": trial["cell"] if len(result.cells) > 1 else "",
        "method": trial["method"],
        "settings": result.settings(trial),
        "seed": str(trial["seed"]) if several else "",
    }


def number(value: Any) -> float:
    """A cell of trials.csv as a float, NaN where it is missing."""
    return math.nan if pd.isna(value) else float(value)


def out_of(n: int, all_of_them: int) -> str:
    """3, or 2 of 3."""
    return str(n) if n == all_of_them else f"{n} of {all_of_them}"


def interval(low: float, high: float) -> str:
    """0.512 to 0.534; empty where it is not known."""
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""


def each_seed(values: Sequence[float]) -> str:
    """0.512, 0.530, where there are several seeds, and so few that the interval says little."""
    few = 1 < len(values) < FEW_SEEDS
    return ", ".join(f"{value:.3f}" for value in values) if few else ""


def _mean(row: Row, images: str) -> str:
    """0.797 ± 0.003, and of how many seeds where not all of them met the test images."""
    said = mean_and_deviation(row[f"{images}_accuracy"], row.get(f"{images}_deviation", math.nan))
    some = images == "test" and 0 < row.get("tested", 0) < row["n"]
    return f"{said} ({out_of(row['tested'], row['n'])})" if some else said
