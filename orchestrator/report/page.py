"""The report of a sweep, made from its run folder at any time; of several from all of theirs.

    python -m orchestrator.report runs/A [runs/B ...]

reads sweep.yaml and the tables of its trials, and writes frontier.csv, report.html (one file that
opens offline), report.md, frontier.png and frontier.html (that chart, offline too, with what there
is to know of the mark that is pointed at) beside them. The report of several is a folder of its own
beside the first, `A+B`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from orchestrator.analysis.at_budget import HALF
from orchestrator.analysis.comparison import compare_methods, compare_pairs
from orchestrator.analysis.confirmed import confirmed
from orchestrator.analysis.pareto import best_within, frontier
from orchestrator.analysis.seed_means import all_repeated, repeated
from orchestrator.palette import CSS, DARK, LIGHT, method_marks
from orchestrator.report import (
    facts,
    figures,
    findings,
    means,
    method_tables,
    per_image,
    trial_tables,
)
from orchestrator.report.answer import answer
from orchestrator.report.channels import channels_table
from orchestrator.report.charts import (
    COSTS,
    MOST_CELLS_IN_PICTURE,
    Record,
    below_chart,
    chart_data,
    in_words,
    page_spec,
    picture_spec,
)
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.table import extent
from orchestrator.run_folder.folder import digest
from orchestrator.run_folder.trials_table import write_atomically, write_table

ALWAYS_DRAWN = ("multiplications", "nonzero_multiplications", "latency_ms")


def write_report(*folders: Path) -> Path:
    """Writes the five files of the report, each at once; returns the folder that holds them.

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
    records = chart_data(result)
    cost = main_cost(result)
    points = frontier(result.trials, result.objectives)
    sure, of_seeds = confirmed(result.trials), repeated(result.trials)
    shown = _shown(result, points, records, cost, sure, of_seeds)
    write_table(points, folder / "frontier.csv")
    spec = _picture(result, records, cost, sure, of_seeds)
    drawn = vl_convert.vegalite_to_png(json.dumps(spec), scale=2)
    write_atomically(folder / "frontier.png", drawn)
    chart = {"name": shown["name"], "spec": _in_rows(spec), "scripts": _scripts()}
    write_atomically(folder / "frontier.html", _render("frontier.html.jinja", chart))
    write_atomically(folder / "report.md", _render("report.md.jinja", shown))
    page = {"light": asdict(LIGHT), "dark": asdict(DARK), "trials": records}
    page |= {"scripts": _scripts(), "made_of": made_of}
    write_atomically(folder / "report.html", _render("report.html.jinja", shown | page))
    return folder


def headline(folder: Path) -> str:
    """The report's first sentence, of one sweep; raises as `write_report`."""
    return answer(SweepResult.read(folder))[0]


def _picture(
    result: SweepResult,
    records: Sequence[Record],
    cost: str,
    sure: pd.DataFrame,
    of_seeds: pd.DataFrame,
) -> dict[str, Any]:
    """What was confirmed; else means over seeds, where all is of several; else every trial."""
    if not sure.empty:
        return means.means_picture_spec(
            result,
            means.confirmed_charts(result, sure, LIGHT),
            "test accuracy against multiplications",
            "Filled: mean and deviation of fresh seeds. Hollow: the validation accuracy that the "
            "search saw.",
        )
    few = len(result.cells) <= MOST_CELLS_IN_PICTURE
    if few and all_repeated(result.trials, of_seeds, cost):
        panels = means.repeated_charts(result, of_seeds, cost, LIGHT)
        below = means.below_charts(panels)
        missing = f" Means below the axis: {below}." if below else ""
        return means.means_picture_spec(
            result,
            panels,
            f"validation accuracy against {in_words(cost)}",
            f"Filled: mean and deviation of {extent(of_seeds['n'])} seeds; lines: what no other "
            f"mean of the method beats. Hollow: test accuracy, where all seeds have it.{missing}",
        )
    return picture_spec(result, records, cost)


@functools.cache
def _scripts() -> str:
    """Vega-Lite with all it needs, 0.9 MB, so that the page opens offline."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _in_rows(picture: dict[str, Any]) -> dict[str, Any]:
    """A picture with its panels in rows. In a browser Vega draws none of a grid of panels."""
    panels, columns = picture["concat"], picture["columns"]
    rows = [
        {"hconcat": panels[start : start + columns]} for start in range(0, len(panels), columns)
    ]
    rest = {name: part for name, part in picture.items() if name not in ("concat", "columns")}
    return {**rest, "vconcat": rows}


def main_cost(result: SweepResult) -> str:
    """The first cost among the objectives, which the frontier chart has on its x axis."""
    return next(name for name in result.objectives if name != "val_accuracy")


def _shown(
    result: SweepResult,
    points: pd.DataFrame,
    records: Sequence[Record],
    cost: str,
    sure: pd.DataFrame,
    of_seeds: pd.DataFrame,
) -> dict[str, Any]:
    """What both templates show."""
    headline, more = answer(result)
    deciding = per_image.deciding_trials(result, points)
    best = best_at_half(result)
    reached = figures.surfaces(result)
    comparison = compare_methods(result.trials, result.objectives)
    of_seeds_charts = means.repeated_charts(result, of_seeds, cost)
    cells: list[str | None] = [*result.cells] or [None]
    charts = {
        name: [(cell, page_spec(result, records, name, cell)) for cell in cells]
        for name in dict.fromkeys([cost, *ALWAYS_DRAWN, *result.objectives])
        if name in COSTS and any(name in record for record in records)
    }
    return {
        "name": result.sweep["name"],
        "folders": [each.name for each in result.folders],
        "headline": headline,
        "more": more,
        "key_figures": facts.key_figures(result),
        "cautions": findings.cautions(result),
        "remarks": findings.remarks(result),
        "cost": cost,
        "several_cells": len(result.cells) > 1,
        "marks": method_marks(result.methods, CSS),
        "charts": charts,
        "overall_chart": page_spec(result, records, cost, None) if len(cells) > 1 else None,
        "below": {name: below_chart(records, name) for name in charts},
        "overall": trial_tables.frontier_table(result, points[points["on_overall_frontier"]]),
        "frontiers": trial_tables.frontier_table(result, points),
        "comparison": method_tables.comparison_table(result, comparison),
        "pairs": method_tables.pairs_table(result, compare_pairs(result.trials)),
        "effort": method_tables.effort_table(result),
        "spread": per_image.spread_table(result, deciding),
        "class_costs": list(per_image.class_costs(result, deciding)),
        "spreads": list(per_image.spreads(result, deciding)),
        "confirmed": trial_tables.confirmed_table(result, sure),
        "confirmed_charts": list(means.confirmed_charts(result, sure).items()),
        "repeated": trial_tables.repeated_table(result, of_seeds),
        "repeated_charts": list(of_seeds_charts.items()),
        "below_means": means.below_charts(of_seeds_charts),
        "attainment_charts": _per_cell(
            result, lambda cell: figures.attainment_spec(result, reached, cell)
        ),
        "curves": _per_cell(
            result, lambda cell: figures.curves_spec(result, best[best["cell"] == cell])
        ),
        "sparsity_chart": figures.sparsity_spec(result),
        "rounds_chart": figures.rounds_spec(result, points),
        "depths": trial_tables.depth_table(result, sure),
        "channels": channels_table(result, best),
        "failures": facts.failures(result),
        "provenance": facts.provenance(result),
        "sweep_files": [
            (each.name, (each / "sweep.yaml").read_text(encoding="utf-8"))
            for each in result.folders
        ],
        "tested": bool(points["test_accuracy"].notna().any()),
    }


def best_at_half(result: SweepResult) -> pd.DataFrame:
    """Of each cell and method the best trial at half of the dense cost; if none is, at any."""
    found = []
    for _, rows in result.searched.groupby(["cell", "method"], sort=False):
        best = best_within(rows, HALF)
        best = best_within(rows, math.inf) if best is None else best
        if best is not None:
            found.append(best)
    return pd.DataFrame(found, columns=result.trials.columns)


def _per_cell(
    result: SweepResult, draw: Callable[[str], dict[str, Any] | None]
) -> list[tuple[str, dict[str, Any]]]:
    """The cells that have such a chart, with it."""
    drawn = [(cell, draw(cell)) for cell in result.cells]
    return [(cell, chart) for cell, chart in drawn if chart is not None]


def _render(template: str, shown: dict[str, Any]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report", "."),
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.report", description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", help="run folders, such as runs/digits_quick"
    )
    folders = parser.parse_args(arguments).folders
    try:
        print(write_report(*folders) / "report.html")
    except FileNotFoundError as error:
        missing = Path(error.filename)
        print(f"{missing.parent} is no run folder: it has no {missing.name}.", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
