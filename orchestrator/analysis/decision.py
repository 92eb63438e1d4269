"""Decision: the best network at each budget, as report, terminal, `choose` and MLflow name it.

A budget is a share of the dense network's multiplications: 75, 50 and 25 %, and every
`keep_multiplications` that the sweep file names.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.analysis.asked_budget import asked_budgets
from orchestrator.analysis.cascade_decision import Ahead, OwnCascades
from orchestrator.analysis.cascades import OwnCascade
from orchestrator.analysis.contender import Contender, Limits, judged, offers, seeds_tried
from orchestrator.analysis.curve import ROUNDING
from orchestrator.analysis.pareto import BUDGETS
from orchestrator.analysis.sweep_result import OUT_OF, SweepResult
from orchestrator.analysis.uncertainty import margin_over_seeds, standard_error

HALF = 0.5
FAR_CHEAPER = 0.1  # of the dense network's cost: a method so far below another was not tried there


@dataclass(frozen=True, eq=False)
class Decision:
    """The best network of a cell within a budget."""

    budget: float
    best: Contender
    close: tuple[Contender, ...]
    """Those behind it that luck may have put there, of images and of seeds."""
    behind: tuple[Contender, ...]
    far: tuple[Contender, ...]
    """Methods that were tried far below its cost alone, and are not compared with it."""
    partly: tuple[str, ...]
    """Methods within the budget in some of their seeds, and not compared with it."""
    dense: Contender | None
    """The dense network, fine-tuned as long; None where the sweep has none."""
    cascade: Ahead | None
    """A cascade of the cell's networks that is ahead of all of them alone, on validation images."""

    @property
    def cell(self) -> str:
        return self.best.cell

    @property
    def accuracy_cost(self) -> float:
        """How far the best network is behind the dense one, a fraction; NaN if that is unknown."""
        return math.nan if self.dense is None else self.dense.accuracy - self.best.accuracy


def decisions(
    result: SweepResult, *budgets: float, cascades: OwnCascades | None = None
) -> list[Decision]:
    """The best network of each cell within each budget that any comes to, the dearest first.

    Args:
        budgets: shares of the dense multiplications; those of `budgets_of` if none is given.
        cascades: of the result, where the caller has them.
    """
    rows, tried = judged(result.trials), seeds_tried(result.trials)
    cascades = cascades or OwnCascades(result)
    found = []
    for budget in sorted(budgets or budgets_of(result.sweep), reverse=True):
        whole, partly = offers(rows, tried, Limits(share=budget))
        for cell in result.cells:
            if own := [each for each in whole if each.cell == cell]:
                some = [each.method for each in partly if each.cell == cell]
                dense = _dense_beside(rows, tried, own[0])
                ahead = cascades.ahead(cell, Limits(share=budget))
                found.append(_decided(budget, own, some, dense, ahead))
    return found


def headline_decisions(found: list[Decision], sweep: Mapping[str, Any]) -> list[Decision]:
    """Those, of each cell, that a report begins with.

    They are of the budget nearest to a half: of those that the sweep file names, if it names any,
    else of all. Where no network comes to it, of the next greater one that has an answer.
    """
    answered = sorted({each.budget for each in found})
    if not answered:
        return []
    wanted = min(
        asked_budgets(sweep) or BUDGETS, key=lambda each: (round(abs(each - HALF), 6), each)
    )
    budget = next((each for each in answered if each >= wanted), answered[-1])
    return [each for each in found if each.budget == budget]


def budgets_of(sweep: Mapping[str, Any]) -> tuple[float, ...]:
    """The budgets of a sweep's answers, ascending."""
    return tuple(sorted({*BUDGETS, *asked_budgets(sweep)}))


def told_apart(one: Contender, other: Contender) -> bool:
    """Whether `one` is ahead by more than luck, of the images and over the seeds.

    True where the number of images is not known, unless both reached the same.
    """
    behind = 100 * (one.accuracy - other.accuracy)
    errors = [standard_error(each.accuracy, each.rows["images"].min()) for each in (one, other)]
    margin = math.hypot(
        *(2 * error for error in errors), margin_over_seeds(one.by_seed, other.by_seed)
    )
    return behind > 0 and not behind < margin


def export_command(result: SweepResult, trial_id: str) -> str:
    """The command that exports a trial's network."""
    return _choose(result, [trial_id], "--export my_network")


def cascade_command(result: SweepResult, cascade: OwnCascade) -> str:
    """The command that confirms a cascade on test images and exports it."""
    at_most = f"--max-multiplications {cascade.at_most}"
    return _choose(result, cascade.networks, f"{at_most} --export my_network")


def _choose(result: SweepResult, trial_ids: Sequence[str], rest: str) -> str:
    row = result.by_id.loc[trial_ids[0]]
    folder = shlex.quote(str(row[OUT_OF] if OUT_OF in row else result.folders[0]))
    own_names = shlex.quote(",".join(each.rpartition("/")[2] for each in trial_ids))
    return f"python -m orchestrator.choose {folder} --trial {own_names} {rest}"


def _decided(
    budget: float,
    found: list[Contender],
    partly: list[str],
    dense: Contender | None,
    cascade: Ahead | None,
) -> Decision:
    """
    Args:
        found: of one cell, the best first.
    """
    best, *others = found
    near = best.mean("share") - FAR_CHEAPER - ROUNDING
    far = [each for each in others if each.mean("share") < near]
    compared = [each for each in others if each not in far]
    behind = [each for each in compared if told_apart(best, each)]
    return Decision(
        budget=budget,
        best=best,
        close=tuple(each for each in compared if each not in behind),
        behind=tuple(behind),
        far=tuple(far),
        partly=tuple(partly),
        dense=dense,
        cascade=cascade,
    )


def _dense_beside(rows: pd.DataFrame, tried: pd.Series, best: Contender) -> Contender | None:
    """The dense network of a network's cell that was fine-tuned as long."""
    dense = rows[(rows["method"] == "dense") & (rows["cell"] == best.cell)]
    epochs = best.rows["fine_tuning_epochs"]
    same = dense["fine_tuning_epochs"].isin(epochs) | bool(epochs.isna().all())
    whole, partly = offers(dense[same], tried, Limits())
    return next(iter([*whole, *partly]), None)
