"""Table of the cascades that a sweep's own networks make."""

import math

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import MISSING, accuracy, millions, percent
from orchestrator.report.tables.table import Table


def cascades_table(result: SweepResult, cascades: pd.DataFrame) -> Table:
    """A row for each cascade, beside the best of the sweep's networks that is no dearer alone.

    Args:
        cascades: of `analysis.cascades`.
    """
    several = result.n_seeds > 1
    records = []
    for _, row in cascades.iterrows():
        first = result.by_id.loc[row["networks"][0]]
        ahead = 100 * (row["val_accuracy"] - row["best_alone"])
        records.append(
            {
                "cell": row["cell"] if len(result.cells) > 1 else "",
                "seed": str(row["seed"]) if several else "",
                "networks, in turn": " → ".join(row["networks"]),
                "reached by": ", ".join(percent(share) for share in row["reached"]),
                "thresholds": ", ".join(f"{each:.2f}" for each in row["thresholds"]),
                "accuracy": accuracy(row["val_accuracy"]),
                "best alone": accuracy(row["best_alone"]),
                "points ahead": f"{ahead:+.1f}" if math.isfinite(ahead) else MISSING,
                "multiplications": millions(row["multiplications"]),
                "of dense": percent(row["multiplications"] / first["dense_multiplications"]),
            }
        )
    return Table.of(records, words=("cell", "networks, in turn", "reached by", "thresholds"))
