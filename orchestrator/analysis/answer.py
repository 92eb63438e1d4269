"""Answer of a sweep in words: a headline, what belongs to it, and a line for each budget.

Every sentence is made from the decisions, trials.csv and sweep.yaml.
"""

from collections import Counter
from collections.abc import Sequence

from orchestrator.analysis.asked_budget import asked_of, missed_budgets, share_said
from orchestrator.analysis.cascade_decision import Ahead
from orchestrator.analysis.contender import Contender
from orchestrator.analysis.decision import (
    HALF,
    Decision,
    cascade_command,
    decisions,
    export_command,
    headline_decisions,
)
from orchestrator.analysis.pareto import BUDGETS
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import accuracy, extent, listed, millions, percent, ratio

CONTROL = "random_channels"
MOST_MISSED = 6  # in a terminal; the report has all


def answer(result: SweepResult, found: Sequence[Decision] | None = None) -> tuple[str, str]:
    """Which network is best at the sweep's budget: a headline, and more.

    Args:
        found: of `decisions`.
    """
    if not (result.searched["status"] == "completed").any():
        return "No trial completed, so there is no frontier.", ""
    found = decisions(result) if found is None else list(found)
    first = headline_decisions(found, result.sweep)
    if not first:
        most = percent(max(BUDGETS))
        return f"No method comes to {most} of the dense network's multiplications or less.", ""
    best = max(first, key=lambda each: each.best.accuracy)
    if len(result.cells) > 1:
        seeds = f", {_judged_by(best.best)}" if best.best.confirmed or best.best.n > 1 else ""
        counts = Counter(each.best.method for each in first).most_common()
        winners = listed(f"{method} in {count}" for method, count in counts)
        headline = (
            f"Most accurate at {budget_in_words(best.budget)}: {winners} of {len(result.cells)} "
            f"settings{seeds}."
        )
        if result.trials[["dataset", "classes"]].drop_duplicates().dropna().shape[0] > 1:
            return headline, "Networks of different data sets are not compared with each other."
        cost = millions(best.best.mean("multiplications"))
        said = [
            f"The best of all is {best.best.method} at {best.cell} with {cost} multiplications: "
            f"{_reached(best)}.",
            *_judged(best),
            *_of_cascade(best),
        ]
        return headline, " ".join(said)
    budget = budget_in_words(best.budget)
    headline = f"{best.best.method} is the most accurate at {budget}: {_reached(best)}."
    return headline, " ".join([*_judged(best), *_more(best)])


def last_lines(result: SweepResult, found: Sequence[Decision] | None = None) -> list[str]:
    """What a terminal shows last: the headline, the best network at each budget, how to export it.

    Of several cells the headline's budget alone; the report has all.

    Args:
        found: of `decisions`.
    """
    found = decisions(result) if found is None else list(found)
    first = headline_decisions(found, result.sweep)
    shown = first if len(result.cells) > 1 else found
    lines = [answer(result, found)[0], *(f"  {line(result, each)}" for each in shown)]
    if missed := missed_budgets(result.trials):
        more = f" and {len(missed) - MOST_MISSED} more" if len(missed) > MOST_MISSED else ""
        lines.append(f"Budgets missed: {'; '.join(missed[:MOST_MISSED])}{more}.")
    if first:
        best = max(first, key=lambda each: each.best.accuracy)
        lines.append(f"Export it: {export_command(result, best.best.trial_id)}")
        if best.cascade is not None:
            command = cascade_command(result, best.cascade.cascade)
            lines.append(f"{cascade_said(best.cascade)} Confirm and export it: {command}")
    return lines


def line(result: SweepResult, decision: Decision) -> str:
    """50 %: l1_filter-s0-003 (keep_ratio 0.45), test accuracy 0.880 (2.0 points behind ..."""
    best = decision.best
    own = result.row(best.trial_id)
    options = result.settings(own)
    place = f"{decision.cell}, " if len(result.cells) > 1 else ""
    close = [each.method for each in decision.close]
    return (
        f"{place}{percent(decision.budget)}: {best.trial_id}{f' ({options})' if options else ''}, "
        f"{images(best)} accuracy {best.written('accuracy')}{_behind_dense(decision)}, "
        f"{share_said(best.mean('share'), asked_of(own))} of the dense multiplications"
        f"{_latency(best, ', ')}"
        f"{f'; too close to tell: {listed(close)}' if close else ''}"
    )


def cascade_said(ahead: Ahead) -> str:
    """A cascade of these networks (a, then b) is ahead of each alone: validation accuracy ..."""
    own = ahead.cascade
    mean = f", mean of {ahead.n} seeds" if ahead.n > 1 else ""
    return (
        f"A cascade of these networks ({', then '.join(own.networks)}) is ahead of each alone at "
        f"this budget: validation accuracy {accuracy(own.accuracy)} against "
        f"{accuracy(own.alone_accuracy)} of {own.alone} on the same {own.images:,} images "
        f"({ahead.points:.1f} points, standard error {ahead.error:.1f}{mean}), at "
        f"{percent(own.share)} of the dense multiplications against {percent(own.alone_share)}. "
        "It is not confirmed."
    )


def budget_in_words(budget: float) -> str:
    """half of the dense network's multiplications"""
    share = "half" if budget == HALF else percent(budget)
    return f"{share} of the dense network's multiplications"


def images(contender: Contender) -> str:
    """Of which images its accuracy is."""
    return "test" if contender.confirmed else "validation"


def _reached(decision: Decision) -> str:
    """test accuracy 0.880, dense 0.900"""
    best, dense = decision.best, decision.dense
    said = f"{images(best)} accuracy {best.written('accuracy')}"
    return said if dense is None else f"{said}, dense {dense.written('accuracy')}"


def _judged(decision: Decision) -> list[str]:
    """What the accuracies of `_reached` are of."""
    best, said = decision.best, []
    if best.confirmed:
        said.append(f"It was {_judged_by(best)}.")
    elif best.n > 1:
        said.append(f"Accuracies are means of {best.n} seeds.")
    if decision.dense is not None:
        said.append("The dense network was fine-tuned as long.")
    return said


def _judged_by(best: Contender) -> str:
    seeds = "one fresh seed" if best.n == 1 else f"{best.n} fresh seeds"
    return f"confirmed with {seeds}" if best.confirmed else f"by the mean of {best.n} seeds"


def _behind_dense(decision: Decision) -> str:
    if decision.dense is None:
        return ""
    points = round(100 * decision.accuracy_cost, 1) + 0
    return f" ({abs(points):.1f} points {'behind' if points >= 0 else 'ahead of'} dense)"


def _latency(best: Contender, before: str) -> str:
    one, many = best.mean("latency_ratio"), best.mean("latency_ratio_batch128")
    if not one > 0:
        return ""
    batch = f" ({ratio(many)} at batch 128)" if many > 0 else ""
    return f"{before}{ratio(one)} times the dense latency{batch}"


def _more(decision: Decision) -> list[str]:
    best = decision.best
    cost, share = millions(best.mean("multiplications")), percent(best.mean("share"))
    needs = f"{best.method} needs {'on average ' if best.n > 1 else ''}{cost} multiplications"
    said = [f"{needs}, {share} of dense{_latency(best, ', and ')}."]
    if best.decides_per_image and best.mean("latency_ratio") > 1:
        said.append("It decides per image, which makes it slower than the dense network here.")
    if best.n > 1 and not best.confirmed:
        said.append("Each seed counts with its most accurate trial within the budget.")
        if best.mean("test_accuracy") > 0:
            said.append(f"On test images these reach {best.written('test_accuracy')}.")
    if decision.dense is None:
        said.append("What it costs in accuracy is not known: `dense` is not in this sweep.")
    near = [*decision.close, *decision.behind]
    if decision.close:
        rows = [best, *decision.close]
        n = f"{best.n} {'fresh ' if best.confirmed else ''}seeds and " if best.n > 1 else ""
        judges = f"{n}{extent(each for c in rows for each in c.rows['images'].dropna())}"
        said.append(
            f"Too close to tell apart by {judges} {images(best)} images: "
            f"{listed(each.method for each in decision.close)}."
        )
    control = next((each for each in near if each.method == CONTROL), None)
    if best.method == CONTROL:
        said.append("Removing channels at random is the control: no method is more accurate here.")
    elif control is not None and control not in decision.close:
        behind = 100 * (best.accuracy - control.accuracy)
        said.append(f"The control, {CONTROL}, is {behind:.1f} points behind.")
    if decision.far:
        tried = listed(f"{each.method} ({percent(each.mean('share'))})" for each in decision.far)
        said.append(f"Not compared, as they were tried at far lower cost only: {tried}.")
    if decision.partly:
        said.append(
            "Not compared, as only some seeds have a trial within the budget: "
            f"{listed(decision.partly)}."
        )
    return [*said, *_of_cascade(decision)]


def _of_cascade(decision: Decision) -> list[str]:
    return [] if decision.cascade is None else [cascade_said(decision.cascade)]
