"""Tables of trials: on a Pareto front, confirmed, of several seeds."""

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report.tables.table import Table, trials_table


def frontier_table(result: SweepResult, points: pd.DataFrame) -> Table:
    """Trials on a Pareto front, the cheapest first."""
    return trials_table(
        result, points.sort_values(["multiplications", "val_accuracy"]),
        "validation", "test", "multiplications", "of dense", "parameters",
        "latency over dense", "at batch 128", "trial",
    )  # fmt: skip


def confirmed_table(result: SweepResult) -> Table:
    """Confirmed points on test images with fresh seeds, beside what the search made of them."""
    return trials_table(
        result, result.confirmed,
        "test", "95 % interval", "each seed", "n", "search's validation", "multiplications",
        "of dense", "latency over dense", "at batch 128", "trial",
        seed=False,
    )  # fmt: skip


def repeated_table(result: SweepResult) -> Table:
    """Options that several seeds ran: means over the seeds."""
    return trials_table(
        result, result.in_order(result.repeated),
        "seeds", "validation", "95 % interval", "each seed", "test", "on training images",
        "multiplications", "of dense", "not zero", "parameters", "latency over dense",
        "at batch 128",
        seed=False,
    )  # fmt: skip
