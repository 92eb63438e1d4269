"""The report of a sweep, made from its run folder at any time; of several from all of theirs."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from orchestrator.analysis.at_budget import HALF
from orchestrator.analysis.comparison import attainment, compare_methods, compare_pairs
from orchestrator.analysis.confirmed import confirmed
from orchestrator.analysis.pareto import best_within, frontier
from orchestrator.analysis.seed_means import all_repeated, repeated
from orchestrator.palette import CSS, DARK, LIGHT, method_marks
from orchestrator.report.charts.attainment import attainment_chart
from orchestrator.report.charts.costs import COSTS, in_words
from orchestrator.report.charts.image_costs import image_costs
from orchestrator.report.charts.pareto_front import (
    MOST_CELLS_IN_PICTURE,
    below_axis,
    drawn_trials,
    pareto_chart,
    pareto_picture,
)
from orchestrator.report.charts.seed_means import (
    confirmed_charts,
    means_below_axis,
    repeated_charts,
)
from orchestrator.report.charts.training import learning_curves, rounds_chart, sparsity_chart
from orchestrator.report.charts.vega_lite import Spec, picture
from orchestrator.report.summary.answer import answer
from orchestrator.report.summary.cautions import cautions
from orchestrator.report.summary.cost_remarks import remarks
from orchestrator.report.summary.failures import failures
from orchestrator.report.summary.key_figures import key_figures
from orchestrator.report.summary.provenance import provenance
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.tables.channels import channels_table
from orchestrator.report.tables.images import class_costs, deciding_trials, spread_table
from orchestrator.report.tables.methods import comparison_table, effort_table, pairs_table
from orchestrator.report.tables.table import extent
from orchestrator.report.tables.trials import (
    confirmed_table,
    depth_table,
    frontier_table,
    repeated_table,
)
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.run_folder.folder import digest
from orchestrator.run_folder.trials_table import write_table

ALWAYS_DRAWN = ("multiplications", "nonzero_multiplications", "latency_ms")


def write_report(*folders: Path) -> Path:
    """Writes the five files of the report, each at once; returns the folder that holds them.

    They are frontier.csv, frontier.png, frontier.html (that chart, offline too, with what there is
    to know of the mark that is pointed at), report.md and report.html. The report of several run
    folders is a folder of its own beside the first, `A+B`.

    Raises:
        FileNotFoundError: if a folder holds no sweep.yaml and trials.csv.
        ValueError: if several sweeps had other objectives.
    """
    made_of = " ".join(digest(each) for each in folders)  # before it is read, as it may grow
    result = SweepResult.read(*folders)
    folder = folders[0]
    if len(folders) > 1:
        folder = folder.with_name("+".join(each.name for each in folders))
        folder.mkdir(exist_ok=True)
    trials = drawn_trials(result)
    points = frontier(result.trials, result.objectives)
    shown = _contents(result, points, trials)
    write_table(points, folder / "frontier.csv")
    spec = _picture(result, trials)
    drawn = vl_convert.vegalite_to_png(json.dumps(spec), scale=2)
    write_atomically(folder / "frontier.png", drawn)
    chart = {"name": shown["name"], "spec": _in_rows(spec), "scripts": _scripts()}
    write_atomically(folder / "frontier.html", _render("frontier.html.jinja", chart))
    write_atomically(folder / "report.md", _render("report.md.jinja", shown))
    page = {"light": asdict(LIGHT), "dark": asdict(DARK), "trials": trials}
    page |= {"scripts": _scripts(), "made_of": made_of}
    write_atomically(folder / "report.html", _render("report.html.jinja", shown | page))
    return folder


def headline(folder: Path) -> str:
    """The report's first sentence, of one sweep; raises as `write_report`."""
    return answer(SweepResult.read(folder))[0]


def _contents(
    result: SweepResult, points: pd.DataFrame, trials: list[dict[str, Any]]
) -> dict[str, Any]:
    """What both templates show.

    Args:
        points: on the Pareto front of their method and cell.
        trials: of `drawn_trials`.
    """
    first_words, more = answer(result)
    cost = main_cost(result)
    deciding = deciding_trials(result, points)
    best = best_at_half(result)
    reached = attainment(result.trials)
    confirmations, means = confirmed(result.trials), repeated(result.trials)
    means_charts = repeated_charts(result, means, cost)
    charts = {
        name: [(cell, pareto_chart(result, trials, name, cell)) for cell in (result.cells or [""])]
        for name in dict.fromkeys([cost, *ALWAYS_DRAWN, *result.objectives])
        if name in COSTS and any(name in each for each in trials)
    }
    several_cells = len(result.cells) > 1
    return {
        "name": result.sweep["name"],
        "folders": [each.name for each in result.folders],
        "headline": first_words,
        "more": more,
        "key_figures": key_figures(result),
        "cautions": cautions(result),
        "remarks": remarks(result),
        "cost": cost,
        "several_cells": several_cells,
        "marks": method_marks(result.methods, CSS),
        "charts": charts,
        "overall_chart": pareto_chart(result, trials, cost, "") if several_cells else None,
        "below": {name: below_axis(trials, name) for name in charts},
        "overall": frontier_table(result, points[points["on_overall_frontier"]]),
        "frontiers": frontier_table(result, points),
        "comparison": comparison_table(result, compare_methods(result.trials, result.objectives)),
        "pairs": pairs_table(result, compare_pairs(result.trials)),
        "effort": effort_table(result),
        "spread": spread_table(result, deciding),
        "class_costs": list(class_costs(result, deciding)),
        "image_costs": list(image_costs(result, deciding)),
        "confirmed": confirmed_table(result, confirmations),
        "confirmed_charts": list(confirmed_charts(result, confirmations).items()),
        "repeated": repeated_table(result, means),
        "repeated_charts": list(means_charts.items()),
        "below_means": means_below_axis(means_charts),
        "attainment_charts": [
            (cell, drawn)
            for cell in result.cells
            if (drawn := attainment_chart(result, reached[reached["cell"] == cell]))
        ],
        "curves": [
            (cell, drawn)
            for cell in result.cells
            if (drawn := learning_curves(result, best[best["cell"] == cell]))
        ],
        "sparsity_chart": sparsity_chart(result),
        "rounds_chart": rounds_chart(result, points),
        "depths": depth_table(result, confirmations),
        "channels": channels_table(result, best),
        "failures": failures(result),
        "provenance": provenance(result),
        "sweep_files": [
            (each.name, (each / "sweep.yaml").read_text(encoding="utf-8"))
            for each in result.folders
        ],
        "tested": bool(points["test_accuracy"].notna().any()),
    }


def main_cost(result: SweepResult) -> str:
    """The first cost among the objectives, which the first chart has on its x axis."""
    return next(name for name in result.objectives if name != "val_accuracy")


def best_at_half(result: SweepResult) -> pd.DataFrame:
    """Of each cell and method the best trial at half of the dense cost; if none is, at any."""
    found = []
    for _, rows in result.searched.groupby(["cell", "method"], sort=False):
        best = best_within(rows, HALF)
        best = best_within(rows, math.inf) if best is None else best
        if best is not None:
            found.append(best)
    return pd.DataFrame(found, columns=result.trials.columns)


def _picture(result: SweepResult, trials: list[dict[str, Any]]) -> Spec:
    """What was confirmed; else means over seeds, where all is of several; else every trial."""
    cost = main_cost(result)
    confirmations, means = confirmed(result.trials), repeated(result.trials)
    if not confirmations.empty:
        return picture(
            result,
            confirmed_charts(result, confirmations, LIGHT),
            "test accuracy against multiplications",
            "Filled: mean and deviation of fresh seeds. Hollow: the validation accuracy that the "
            "search saw.",
        )
    few = len(result.cells) <= MOST_CELLS_IN_PICTURE
    if few and all_repeated(result.trials, means, cost):
        charts = repeated_charts(result, means, cost, LIGHT)
        below = means_below_axis(charts)
        missing = f" Means below the axis: {below}." if below else ""
        return picture(
            result,
            charts,
            f"validation accuracy against {in_words(cost)}",
            f"Filled: mean and deviation of {extent(means['n'])} seeds; lines: what no other "
            f"mean of the method beats. Hollow: test accuracy, where all seeds have it.{missing}",
        )
    return pareto_picture(result, trials, cost)


@functools.cache
def _scripts() -> str:
    """Vega-Lite with all it needs, 0.9 MB, so that the page opens offline."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _in_rows(picture: Spec) -> Spec:
    """A picture with its panels in rows. In a browser Vega draws none of a grid of panels."""
    panels, columns = picture["concat"], picture["columns"]
    rows = [
        {"hconcat": panels[start : start + columns]} for start in range(0, len(panels), columns)
    ]
    rest = {name: part for name, part in picture.items() if name not in ("concat", "columns")}
    return {**rest, "vconcat": rows}


def _render(template: str, shown: dict[str, Any]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(template).render(shown).encode()


def _markdown_cell(text: str) -> str:
    """Text that stays inside its cell and is taken as it is written."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", text.replace("\n", " "))
