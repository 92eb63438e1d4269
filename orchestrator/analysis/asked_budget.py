"""Budgets that trials were asked for, and those that they missed.

What was asked for is the option `keep_multiplications` in a trial's row; what came of it is the
share of the dense multiplications that was measured.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.pareto import is_within
from orchestrator.formatting import percent
from orchestrator.sweep_file.grids_and_ranges import Grid, find_variables

BUDGET_OPTION = "keep_multiplications"
FAR_BELOW = 0.05  # of the dense cost: a network so far below its budget could be more accurate


def asked_budgets(sweep: Mapping[str, Any]) -> tuple[float, ...]:
    """Each `keep_multiplications` below 1 that the sweep file names, also in a grid or a choice."""
    found: set[float] = set()
    for options in sweep["methods"].values():
        value = (options or {}).get(BUDGET_OPTION)
        variable = find_variables({"": value}).get(("",)) if isinstance(value, Mapping) else None
        if isinstance(variable, Grid):
            found.update(_numbers(variable.values))
        elif variable is not None and variable.kind == "choice":
            found.update(_numbers(variable.drawn))
        else:
            found.update(_numbers((value,)))
    return tuple(sorted(each for each in found if 0 < each < 1))


def asked_of(row: Mapping[Any, Any] | pd.Series) -> float:
    """The budget of a row of trials.csv; NaN where it has none."""
    value = row.get(f"{row['method']}.{BUDGET_OPTION}")
    return math.nan if value is None or pd.isna(value) else float(value)


def is_missed(share: float, asked: float) -> bool:
    """Whether a share is above the budget as it is written, or far below it."""
    if math.isnan(share) or math.isnan(asked):
        return False
    return not is_within(np.array(share), asked) or share < asked - FAR_BELOW


def share_said(share: float, asked: float) -> str:
    """50 %, or 50 % (asked for 70 %)."""
    return percent(share) + (f" (asked for {percent(asked)})" if is_missed(share, asked) else "")


def missed_budgets(trials: pd.DataFrame) -> list[str]:
    """rnp asked for 70 % came to 50 %: each method and budget that its networks missed.

    In the mean over its trials; of the confirmed ones on test images, where there are any.
    """
    rows = trials[(trials["phase"] == "confirmation") & trials["test_multiplications"].notna()]
    spent = rows["test_multiplications"]
    if rows.empty:
        rows = trials[trials["status"] == "completed"]
        spent = rows["multiplications"]
    if rows.empty:
        return []
    asked = np.array([asked_of(row) for row in rows.to_dict("records")])
    shares = (spent / rows["dense_multiplications"]).to_numpy(float, na_value=math.nan)
    frame = pd.DataFrame({"method": rows["method"].to_numpy(), "asked": asked, "share": shares})
    groups = frame.dropna().groupby(["method", "asked"], sort=False)
    means = groups[["share"]].mean().reset_index()
    return [
        f"{each['method']} asked for {percent(each['asked'])} came to {percent(each['share'])}"
        for each in means.to_dict("records")
        if is_missed(each["share"], each["asked"])
    ]


def _numbers(values: tuple[Any, ...]) -> list[float]:
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
