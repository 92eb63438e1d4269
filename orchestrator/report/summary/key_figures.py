"""The few large numbers at the head of a report."""

from collections.abc import Callable

import pandas as pd

from orchestrator.analysis.at_budget import at_half
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, duration, millions


def key_figures(result: SweepResult) -> list[tuple[str, str, str]]:
    """What the sweep comes down to: large numbers, as (what it is, number, a word about it)."""
    figures = []
    best = [found[0] for cell in result.cells if (found := at_half(result.searched, cell))]
    if best:
        first = max(best, key=lambda each: each.accuracy)
        seeds = f", mean of {first.n} seeds" if first.n > 1 else ""
        cost = millions(first.mean("multiplications"))
        title, reached = "Best at half the cost, validation", accuracy(first.accuracy)
        figures.append((title, reached, f"{first.method}, {cost}{seeds}"))
    trials = result.trials
    dense = trials.dropna(subset=["dense_val_accuracy", "dense_multiplications"])
    if not dense.empty:
        # On all validation images, where a row has that: some methods are judged on a part of them.
        rewarding = dense["reward_images"].fillna(0)
        dense = dense[rewarding == rewarding.min()]
        reached = _between(dense["dense_val_accuracy"], accuracy)
        cost = f"{_between(dense['dense_multiplications'], millions)} multiplications"
        figures.append(("Dense network, validation", reached, cost))
    completed = int((trials["status"] == "completed").sum())
    figures.append(("Trials completed", f"{completed:,}", f"of {len(trials):,}"))
    figures.append(("Work", duration(trials["duration_s"].sum()), "summed over the trials"))
    return figures


def _between(values: pd.Series, write: Callable[[float], str]) -> str:
    """0.740, or 0.740 to 0.823"""
    return " to ".join(dict.fromkeys([write(values.min()), write(values.max())]))
