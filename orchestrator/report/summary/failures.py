"""Trials that are on no Pareto front, by what went wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.table import number


@dataclass(frozen=True)
class Failure:
    """Trials that ended with the same error."""

    reason: str
    trial_ids: list[str]
    text: str
    """The whole error of the first of them."""


def failures(result: SweepResult) -> list[Failure]:
    """Trials that enter no Pareto front, by the first line of their error, the commonest first.

    Those that failed or were lost, and those that lack a finite figure for an objective.
    """
    rows = result.trials[~result.trials["status"].isin(["completed", "stopped_early"])]
    texts = dict(zip(rows["trial_id"], rows["error"].fillna(rows["status"]), strict=True))
    completed = result.trials[result.trials["status"] == "completed"]
    for _, row in completed.iterrows():
        unknown = [name for name in result.objectives if not math.isfinite(number(row[name]))]
        if unknown:
            texts[row["trial_id"]] = f"completed without a number for {', '.join(unknown)}"
    groups: dict[str, Failure] = {}
    for trial_id, text in texts.items():
        reason = str(text).split("\n")[0]
        group = groups.setdefault(reason, Failure(reason, [], str(text)))
        group.trial_ids.append(trial_id)
    return sorted(groups.values(), key=lambda group: -len(group.trial_ids))
