"""The report of a sweep, made from its run folder at any time.

    python -m orchestrator.report runs/NAME

reads sweep.yaml and the tables of its trials, and writes frontier.csv, report.html (one file that
opens offline), report.md and frontier.png beside them.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert

from orchestrator.comparison import compare_methods, compare_pairs
from orchestrator.frontier import frontier
from orchestrator.report import findings, per_image, tables
from orchestrator.report.charts import (
    COSTS,
    CSS,
    DARK,
    LIGHT,
    Record,
    below_chart,
    chart_data,
    method_marks,
    page_spec,
    picture,
)
from orchestrator.trials_table import write_atomically, write_table

ALWAYS_DRAWN = ("multiplications", "nonzero_multiplications", "latency_ms")


def write_report(folder: Path) -> None:
    """Writes the four files of the report, each at once.

    Raises:
        FileNotFoundError: if the folder holds no sweep.yaml and trials.csv.
    """
    result = findings.SweepResult.read(folder)
    records = chart_data(result)
    cost = main_cost(result)
    points = frontier(result.trials, result.objectives)
    facts = _facts(result, points, records, cost, folder)
    write_table(points, folder / "frontier.csv")
    write_atomically(folder / "frontier.png", picture(result, records, cost))
    write_atomically(folder / "report.md", _render("report.md.jinja", facts))
    page = {"light": asdict(LIGHT), "dark": asdict(DARK), "trials": records}
    page |= {"scripts": _scripts()}
    write_atomically(folder / "report.html", _render("report.html.jinja", facts | page))


@functools.cache
def _scripts() -> str:
    """Vega-Lite with all it needs, 0.9 MB, so that the page opens offline."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def main_cost(result: findings.SweepResult) -> str:
    """The first cost among the objectives, which the frontier chart has on its x axis."""
    return next(name for name in result.objectives if name != "val_accuracy")


def _facts(
    result: findings.SweepResult,
    points: pd.DataFrame,
    records: Sequence[Record],
    cost: str,
    folder: Path,
) -> dict[str, Any]:
    """What both templates show."""
    headline, more = findings.answer(result)
    deciding = per_image.deciding_trials(folder, points)
    comparison = compare_methods(result.trials, result.objectives)
    cells: list[str | None] = [*result.cells] or [None]
    charts = {
        name: [(cell, page_spec(result, records, name, cell)) for cell in cells]
        for name in dict.fromkeys([cost, *ALWAYS_DRAWN, *result.objectives])
        if name in COSTS and any(name in record for record in records)
    }
    return {
        "name": result.sweep["name"],
        "folder": folder.name,
        "headline": headline,
        "more": more,
        "key_figures": tables.key_figures(result),
        "cautions": findings.cautions(result),
        "remarks": findings.remarks(result),
        "cost": cost,
        "marks": method_marks(result.methods, CSS),
        "charts": charts,
        "overall_chart": page_spec(result, records, cost, None) if len(cells) > 1 else None,
        "below": {name: below_chart(records, name) for name in charts},
        "overall": tables.frontier_table(result, points[points["on_overall_frontier"]]),
        "frontiers": tables.frontier_table(result, points),
        "comparison": tables.comparison_table(result, comparison),
        "pairs": tables.pairs_table(result, compare_pairs(result.trials)),
        "effort": tables.effort_table(result),
        "spread": per_image.spread_table(result, deciding),
        "class_costs": list(per_image.class_costs(result, folder, deciding)),
        "failures": tables.failures(result),
        "provenance": tables.provenance(result),
        "sweep_file": (folder / "sweep.yaml").read_text(encoding="utf-8"),
        "tested": bool(points["test_accuracy"].notna().any()),
    }


def _render(template: str, facts: dict[str, Any]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report", "."),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(template).render(facts).encode()


def _markdown_cell(text: str) -> str:
    """Text that stays inside its cell and is taken as it is written."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", text.replace("\n", " "))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/digits_quick")
    folder = parser.parse_args(arguments).folder
    try:
        write_report(folder)
    except FileNotFoundError as error:
        print(f"{folder} is no run folder: it has no {Path(error.filename).name}.", file=sys.stderr)
        return 2
    print(folder / "report.html")
    return 0
