"""Table of a search: what its tries came to, beside random search of as many."""

import math

import pandas as pd

from orchestrator.formatting import extent
from orchestrator.report.tables.table import Table


def search_table(progress: pd.DataFrame) -> Table:
    """A row for each method: means over its studies, at their last try.

    Args:
        progress: of `search_progress`.
    """
    if progress.empty:
        return Table.of([])
    last = progress.loc[progress.groupby("study", sort=False)["number"].idxmax()]
    return Table.of(
        [
            {
                "method": str(method),
                "studies": str(len(rows)),
                "tries of each": extent(rows["number"]),
                "hypervolume": _written(rows["hypervolume"].mean()),
                "by random search": _written(rows["random"].mean()),
                "ahead in": _ahead(rows[rows["random"].notna()]),
            }
            for method, rows in last.groupby("method", sort=False)
        ]
    )


def _written(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _ahead(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    return f"{(rows['hypervolume'] > rows['random']).sum()} of {len(rows)} studies"
