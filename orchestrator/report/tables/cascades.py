"""Table of the cascades that a sweep's own networks make."""

from collections.abc import Sequence

from orchestrator.analysis.cascades import OwnCascade
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, millions, percent
from orchestrator.report.tables.table import Table


def cascades_table(result: SweepResult, cascades: Sequence[OwnCascade]) -> Table:
    """A row for each cascade, beside the best of the sweep's networks that is no dearer alone."""
    several = result.n_seeds > 1
    records = [
        {
            "cell": each.cell if len(result.cells) > 1 else "",
            "seed": str(each.seed) if several else "",
            "networks, in turn": " → ".join(each.networks),
            "reached by": ", ".join(map(percent, each.reached)),
            "thresholds": ", ".join(f"{own:.2f}" for own in each.thresholds),
            "accuracy": accuracy(each.accuracy),
            "best alone": accuracy(each.alone_accuracy),
            "points ahead": f"{each.ahead:+.1f} ± {each.error:.1f}",
            "at random": accuracy(each.at_random),
            "multiplications": millions(each.multiplications),
            "of dense": percent(each.share),
            "alone, of dense": percent(each.alone_share),
        }
        for each in cascades
    ]
    return Table.of(records, words=("cell", "networks, in turn", "reached by", "thresholds"))
