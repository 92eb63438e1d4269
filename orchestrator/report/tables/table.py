"""A table of the report, as text that HTML and Markdown show alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.formatting import MISSING
from orchestrator.report.sweep_result import SweepResult

WORDS = ("cell", "method", "settings", "setting", "trial")  # columns that hold words


@dataclass(frozen=True)
class Table:
    """A header and rows of text."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: frozenset[int]
    """Places of the columns that hold words; the others hold figures and are set flush right."""
    best_rows: frozenset[int] = frozenset()
    """Places of the rows to stand out."""

    @staticmethod
    def of(
        records: Sequence[Mapping[str, str]],
        words: Sequence[str] = WORDS,
        best_rows: Sequence[int] = (),
    ) -> Table:
        """A row for each record, which all have the same columns; one of nothing is left out."""
        names, nothing = records[0] if records else {}, ("", MISSING)
        header = tuple(
            name for name in names if any(record[name] not in nothing for record in records)
        )
        return Table(
            header=header,
            rows=[tuple(record[name] for name in header) for record in records],
            text_columns=frozenset(place for place, name in enumerate(header) if name in words),
            best_rows=frozenset(best_rows),
        )


def which_trial(result: SweepResult, trial: pd.Series, *, seed: bool = True) -> dict[str, str]:
    """The first columns of a trial's row; a cell or a seed that all share is left empty."""
    several = seed and result.searched["seed"].nunique() > 1
    return {
        "cell": trial["cell"] if len(result.cells) > 1 else "",
        "method": trial["method"],
        "settings": result.settings(trial),
        "seed": str(trial["seed"]) if several else "",
    }


def number(value: Any) -> float:
    """A cell of trials.csv as a float, NaN where it is missing."""
    return math.nan if pd.isna(value) else float(value)


def extent(column: pd.Series) -> str:
    """5, or 3 to 5; empty if nothing is known."""
    low, high = column.min(), column.max()
    if pd.isna(low):
        return ""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
