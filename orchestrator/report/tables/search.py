"""Tables of a search: what its tries came to beside random search, and what each option did."""

import math

import pandas as pd

from orchestrator.formatting import extent
from orchestrator.report.tables.table import WORDS, Table


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


def importances_table(importances: pd.DataFrame) -> Table:
    """A row for each searched option of each method: means over its studies.

    Args:
        importances: of `option_importances`.
    """
    if importances.empty:
        return Table.of([])
    return Table.of(
        [
            {
                "method": str(method),
                "option": str(option).removeprefix(f"{method}."),
                "studies": str(rows["study"].nunique()),
                "tries of each": extent(rows["tries"]),
                **{
                    str(name): _written(rows["importance"][rows["objective"] == name].mean())
                    for name in importances["objective"].unique()
                },
            }
            for (method, option), rows in importances.groupby(["method", "option"], sort=False)
        ],
        words=(*WORDS, "option"),
    )


def _written(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _ahead(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    return f"{(rows['hypervolume'] > rows['random']).sum()} of {len(rows)} studies"
