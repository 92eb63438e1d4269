"""Tables of answers: the best network at each budget, and every method's at the headline's."""

from collections.abc import Sequence

from orchestrator.analysis.asked_budget import asked_of, share_said
from orchestrator.analysis.contender import Contender, Limits, contenders
from orchestrator.analysis.decision import Decision, cascade_command, export_command
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import MISSING, listed, millions, percent, ratio
from orchestrator.report.tables.table import Table


def answers_table(result: SweepResult, found: Sequence[Decision]) -> Table:
    """The best network of each cell at each budget, beside the dense one fine-tuned as long."""
    return Table.of(
        [
            {
                "cell": _cell(result, each.best),
                "at most": percent(each.budget),
                "method": each.best.method,
                "settings": result.settings(result.row(each.best.trial_id)),
                "accuracy": each.best.written("accuracy"),
                "dense": MISSING if each.dense is None else each.dense.written("accuracy"),
                "points behind": _points(each.accuracy_cost),
                **_costs(result, each.best),
                "too close to tell": listed([c.method for c in each.close]) if each.close else "",
                "trial": each.best.trial_id,
            }
            for each in found
        ],
        words=("cell", "method", "settings", "too close to tell", "trial"),
    )


def export_commands(result: SweepResult, found: Sequence[Decision]) -> list[tuple[str, str]]:
    """What exports the best network of each and a cascade that is ahead: whose, and the command."""
    commands = []
    for each in found:
        commands.append((each.best.trial_id, export_command(result, each.best.trial_id)))
        if each.cascade is not None:
            own = each.cascade.cascade
            name = f"{', then '.join(own.networks)}, which is confirmed first"
            commands.append((name, cascade_command(result, own)))
    return commands


def methods_at_budget_table(result: SweepResult, first: Sequence[Decision]) -> Table:
    """Every method's network at the headline's budget, in each cell; accuracy and cost of the same.

    Args:
        first: of `headline_decisions`.
    """
    if not first:
        return Table.of([])
    found = contenders(result.trials, Limits(share=first[0].budget))
    dense = {each.cell: each.dense for each in first}
    best = {each.cell: each.best.method for each in first}
    place = {method: number for number, method in enumerate(result.methods)}
    found.sort(key=lambda each: (result.cells.index(each.cell), place[each.method]))
    return Table.of(
        [
            {
                "cell": _cell(result, each),
                "method": each.method,
                "accuracy": each.written("accuracy"),
                "dense": (
                    MISSING if (own := dense[each.cell]) is None else own.written("accuracy")
                ),
                "on training images": each.written("train_accuracy"),
                **({} if each.confirmed else {"on test images": each.written("test_accuracy")}),
                **_costs(result, each),
                "seeds": str(each.n) if each.n > 1 else "",
                "trial": each.trial_id,
            }
            for each in found
        ],
        best_rows=[number for number, each in enumerate(found) if best[each.cell] == each.method],
    )


def _costs(result: SweepResult, each: Contender) -> dict[str, str]:
    asked = asked_of(result.row(each.trial_id))
    return {
        "multiplications": millions(each.mean("multiplications")),
        "of dense": share_said(each.mean("share"), asked),
        "latency over dense": ratio(each.mean("latency_ratio")),
        "at batch 128": ratio(each.mean("latency_ratio_batch128")),
    }


def _cell(result: SweepResult, each: Contender) -> str:
    return each.cell if len(result.cells) > 1 else ""


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0:.1f}" if difference == difference else MISSING
