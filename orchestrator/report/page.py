"""The report of a sweep, made from its run folder at any time; of several from all of theirs."""

import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from orchestrator.analysis.answer import answer, budget_in_words
from orchestrator.analysis.at_budget import best_of_each
from orchestrator.analysis.cascade_decision import OwnCascades
from orchestrator.analysis.comparison import attainment
from orchestrator.analysis.decision import HALF, decisions, headline_decisions
from orchestrator.analysis.importance import FEWEST_COMPLETED, option_importances
from orchestrator.analysis.pareto import LATENCY_RATIOS, as_share
from orchestrator.analysis.search_progress import SIMULATED, search_progress
from orchestrator.analysis.seed_means import all_repeated
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import extent, render
from orchestrator.palette import CSS, DARK, LIGHT, Palette, method_marks
from orchestrator.report.charts.cascades import cascade_charts
from orchestrator.report.charts.image_costs import image_costs
from orchestrator.report.charts.pareto_front import (
    MOST_CELLS_IN_PICTURE,
    beyond_axes,
    drawn_trials,
    pareto_chart,
    pareto_picture,
)
from orchestrator.report.charts.search import search_chart
from orchestrator.report.charts.seed_means import (
    attainment_chart,
    confirmed_charts,
    means_below_axis,
    repeated_charts,
)
from orchestrator.report.charts.training import learning_curves, rounds_chart, sparsity_chart
from orchestrator.report.charts.vega_lite import (
    COSTS,
    Spec,
    chart_cost,
    edge_said,
    in_plain_colours,
    in_words,
    picture,
)
from orchestrator.report.summary.cautions import cautions, failures, remarks
from orchestrator.report.summary.key_figures import key_figures
from orchestrator.report.summary.provenance import provenance
from orchestrator.report.tables.answers import (
    answers_table,
    export_commands,
    methods_at_budget_table,
)
from orchestrator.report.tables.cascades import cascades_table
from orchestrator.report.tables.channels import channels_table
from orchestrator.report.tables.images import class_costs, deciding_trials, spread_table
from orchestrator.report.tables.methods import (
    comparison_table,
    effort_table,
    pairs_by_seed_table,
    pairs_table,
)
from orchestrator.report.tables.search import importances_table, search_table
from orchestrator.report.tables.trials import (
    confirmed_table,
    frontier_table,
    repeated_table,
)
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.run_folder.folder import digest
from orchestrator.run_folder.trials_table import write_table

ALWAYS_DRAWN = ("multiplications", "nonzero_multiplications", *LATENCY_RATIOS)


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
    shown = _contents(result, trials)
    write_table(result.frontier, folder / "frontier.csv")
    spec = _picture(result, trials)
    drawn = vl_convert.vegalite_to_png(json.dumps(in_plain_colours(spec)), scale=2)
    write_atomically(folder / "frontier.png", drawn)
    shown |= {"colours": _style(), "trials": trials, "made_of": made_of}
    shown |= {"scripts": _vega_embed(), "picture": spec}
    for name in ("frontier.html", "report.md", "report.html"):
        write_atomically(folder / name, render("orchestrator.report", f"{name}.jinja", shown))
    return folder


def _style() -> str:
    """The colours as variables of a page's style sheet: light, dark and, on paper, light."""

    def variables(palette: Palette) -> str:
        colours = {"accent": palette.methods[0], **asdict(palette)}
        colours |= {f"method-{n}": colour for n, colour in enumerate(colours.pop("methods"))}
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

    return (
        f":root {{ {variables(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    )


@cache
def _vega_embed() -> str:
    """Vega-Lite with all it needs, 0.9 MB, so that the pages open offline; made in 1.5 s."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _contents(result: SweepResult, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What the templates show.

    Args:
        trials: of `drawn_trials`.
    """
    cascades = OwnCascades(result)
    found = decisions(result, cascades=cascades)
    first = headline_decisions(found, result.sweep)
    first_words, more = answer(result, found)
    cost, cells, points = main_cost(result), result.cells, result.frontier
    deciding = deciding_trials(result, points)
    best = best_of_each(result.searched, ["cell", "method"], HALF, math.inf)
    reached = attainment(result.trials)
    tests_charts, means_charts = confirmed_charts(result), repeated_charts(result, cost)
    progress = search_progress(result)
    comparable = len(cells) > 1 and len(set(result.data_of.values())) == 1
    charts = {
        name: [(cell, pareto_chart(result, trials, name, cell)) for cell in (cells or [""])]
        for name in dict.fromkeys(
            [cost, *ALWAYS_DRAWN, *_saved(result), *map(chart_cost, result.objectives)]
        )
        if name in COSTS and any(name in each for each in trials)
    }
    reached_charts = [
        (cell, attainment_chart(result, reached[reached["cell"] == cell])) for cell in cells
    ]
    in_turn = cascades.shown()
    curves = [(cell, learning_curves(result, best[best["cell"] == cell])) for cell in cells]
    return {
        "name": result.sweep["name"],
        "folders": [each.name for each in result.folders],
        "headline": first_words,
        "more": more,
        "answers": answers_table(result, found),
        "commands": export_commands(result, first),
        "key_figures": key_figures(result, first),
        "cautions": list(cautions(result)),
        "remarks": remarks(result),
        "cost": cost,
        "several_cells": len(cells) > 1,
        "marks": method_marks(result.methods, CSS),
        "charts": charts,
        "overall_chart": pareto_chart(result, trials, cost, "") if comparable else None,
        "beyond": {name: beyond_axes(trials, name) for name in charts},
        "overall": frontier_table(result, points[points["on_overall_frontier"]]),
        "frontiers": frontier_table(result, points),
        "comparison": comparison_table(result),
        "pairs": pairs_table(result),
        "pairs_by_seed": pairs_by_seed_table(result),
        "effort": effort_table(result),
        "cascades": cascades_table(result, [each for _, own in in_turn for each in own]),
        "several_judged": len(in_turn) > len({networks.cell for networks, _ in in_turn}),
        "cascade_charts": list(cascade_charts(result, in_turn).items()),
        "spread": spread_table(result, deciding),
        "class_costs": list(class_costs(result, deciding)),
        "image_costs": list(image_costs(result, deciding)),
        "confirmed": confirmed_table(result),
        "confirmed_charts": list(tests_charts.items()),
        "below_confirmed": means_below_axis(tests_charts),
        "repeated": repeated_table(result),
        "repeated_charts": list(means_charts.items()),
        "below_means": means_below_axis(means_charts),
        "attainment_charts": [(cell, chart) for cell, chart in reached_charts if chart],
        "search": search_table(progress),
        "search_charts": [
            (str(cell), search_chart(result, own))
            for cell, own in (progress.groupby("cell", sort=False) if len(progress) else ())
        ],
        "simulated": SIMULATED,
        "fewest_completed": FEWEST_COMPLETED,
        "importances": importances_table(option_importances(result)),
        "curves": [(cell, chart) for cell, chart in curves if chart],
        "sparsity_chart": sparsity_chart(result),
        "rounds_chart": rounds_chart(result, points),
        "depths": methods_at_budget_table(result, first),
        "budget": budget_in_words(first[0].budget if first else HALF),
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
    """The first cost among the objectives, as the first chart has it on its x axis."""
    return chart_cost(next(name for name in result.objectives if name != "val_accuracy"))


def _saved(result: SweepResult) -> list[str]:
    """The costs of other machines that some method here is about."""
    bits, zeros = (
        as_share(result.searched, name) for name in ("mean_bits", "nonzero_multiplications")
    )
    winograd = as_share(result.searched, "winograd_multiplications")
    saved = {"bit_operations": bits < 0.9, "winograd_multiplications": winograd < 0.9 * zeros}
    return [name for name, trials in saved.items() if trials.any()]


def _picture(result: SweepResult, trials: list[dict[str, Any]]) -> Spec:
    """What was confirmed; else means over seeds, where all is of several; else every trial."""
    cost = main_cost(result)
    if not result.confirmed.empty:
        said = (
            "Filled: mean and deviation of fresh seeds; lines: what no other of the method beats. "
            "Hollow: the validation accuracy that the search saw."
        )
        charts, axes = confirmed_charts(result), "test accuracy against multiplications"
        return picture(result, charts, axes, said + edge_said(means_below_axis(charts)))
    few = len(result.cells) <= MOST_CELLS_IN_PICTURE
    if few and all_repeated(result.trials, result.repeated, cost):
        charts = repeated_charts(result, cost)
        said = (
            f"Filled: mean and deviation of {extent(result.repeated['n'])} seeds; lines: what no "
            "other mean of the method beats. Hollow: test accuracy, where all seeds have it."
        )
        axes = f"validation accuracy against {in_words(cost)}"
        return picture(result, charts, axes, said + edge_said(means_below_axis(charts)))
    return pareto_picture(result, trials, cost)
