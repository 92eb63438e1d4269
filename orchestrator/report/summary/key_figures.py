"""The few large numbers at the head of a report."""

from collections.abc import Sequence

from orchestrator.analysis.answer import images
from orchestrator.analysis.decision import Decision
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, duration, millions, percent


def key_figures(result: SweepResult, first: Sequence[Decision]) -> list[tuple[str, str, str]]:
    """What the sweep comes down to: large numbers, as (what it is, number, a word about it).

    Args:
        first: of `headline_decisions`.
    """
    figures, trials = [], result.trials
    if first:
        decision = max(first, key=lambda each: each.best.accuracy)
        best, dense = decision.best, decision.dense
        seeds = f", mean of {best.n} seeds" if best.n > 1 else ""
        cost = millions(best.mean("multiplications"))
        title = f"Best at {percent(decision.budget)} of the cost, {images(best)}"
        figures.append((title, accuracy(best.accuracy), f"{best.method}, {cost}{seeds}"))
        if dense is not None:
            cost = f"fine-tuned as long, {millions(dense.mean('multiplications'))}"
            title = f"Dense network, {images(dense)}"
            figures.append((title, accuracy(dense.accuracy), cost))
    completed = int((trials["status"] == "completed").sum())
    figures.append(("Trials completed", f"{completed:,}", f"of {len(trials):,}"))
    figures.append(("Work", duration(trials["duration_s"].sum()), "summed over the trials"))
    return figures
