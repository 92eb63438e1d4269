"""The charts of a report mark what its tables hold."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from altair.vegalite.v6.schema.core import load_schema
from jsonschema.validators import validator_for
from PIL import Image

from orchestrator.analysis.pareto import frontier
from orchestrator.palette import LIGHT, method_marks
from orchestrator.report.charts.pareto_front import (
    below_axis,
    drawn_trials,
    pareto_chart,
    pareto_picture,
)
from orchestrator.report.charts.vega_lite import Spec
from orchestrator.report.page import write_report
from orchestrator.run_folder.trial_files import write_reports
from tests.report_rows import (
    CONFIRMED,
    METHODS,
    SMALL,
    failed,
    folder_with_images,
    result_of,
    run_folder,
    trial,
)


def test_charts_mark_the_same_frontier_as_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        trial(method, accuracy, share, cell=cell)
        for method in METHODS
        for cell in ("depth=4", "depth=8")
        for accuracy, share in rng.random((20, 2)).round(2)
    ]
    result = result_of(tmp_path, rows)
    records = drawn_trials(result)
    points = frontier(result.trials, result.objectives)
    on, overall = "on_multiplications", "overall_multiplications"
    assert {r["trial_id"] for r in records if r[on]} == set(points["trial_id"])
    assert {r["trial_id"] for r in records if r[overall]} == set(
        points.loc[points["on_overall_frontier"], "trial_id"]
    )


def test_charts_hold_completed_trials_with_what_was_measured(tmp_path: Path) -> None:
    rows = [
        *SMALL,
        failed("l1_filter", "OSError: x"),
        trial("l1_filter", 0.5, 0.5, latency_ms=None),
    ]
    records = drawn_trials(result_of(tmp_path, rows))
    assert len(records) == len(SMALL) + 1
    by_id = {record["trial_id"]: record for record in records}
    assert by_id["l1_filter-006"]["multiplications"] == 45.0
    assert "latency_ms" not in by_id["l1_filter-010"]
    assert (
        "on_latency_ms" not in by_id["l1_filter-010"] or not by_id["l1_filter-010"]["on_latency_ms"]
    )
    assert records[-1]["method"] == "dense"  # drawn last, on top


def all_charts(path: Path) -> list[Spec]:
    """Every chart of a page, each kind among them."""
    folder = run_folder(path / "confirmed", CONFIRMED)
    reports = [{"epoch": 1, "val_accuracy": 0.5, "dense_val_accuracy": 0.4}]
    reports += [{"round": 1, "sparsity": 0.5, "sparsity_before_finetuning": 0.6}]
    write_reports(folder / "reports" / "vanilla-002.jsonl", reports)
    seeds = [
        {**row, "seed": seed, "cell": cell, "val_accuracy_before_finetuning": 0.2}
        for row in SMALL
        for seed in (0, 1)
        for cell in ("depth=4", "depth=8")
    ]
    folders = [folder, run_folder(path / "seeds", seeds), folder_with_images(path / "images")]
    found: list[Spec] = []
    for each in folders:
        write_report(each)
        picture = re.search(
            r'vegaEmbed\("#chart", (.*), \{ ren', (each / "frontier.html").read_text()
        )
        figures = re.search(r"^const figures = (.*);$", (each / "report.html").read_text(), re.M)
        assert picture is not None and figures is not None
        found += [json.loads(picture[1]), *json.loads(figures[1])]
    return found


def test_charts_are_valid_vega_lite(tmp_path: Path) -> None:
    charts = all_charts(tmp_path)
    said = "\n".join(chart.get("description", "") for chart in charts)
    kinds = ("Test accuracy", "means over seeds", "latency", "gone", "rounds", "epochs", "reach")
    for kind in (*kinds, "How many images"):
        assert kind in said, kind
    schema = load_schema()
    vega_lite = validator_for(schema)(schema)
    for chart in charts:
        surface = {"background": chart["background"] or "transparent"}  # null means that too
        vega_lite.validate(chart | surface)


def test_ruined_trials_do_not_stretch_the_chart_but_are_counted(tmp_path: Path) -> None:
    result = result_of(
        tmp_path, [*SMALL, trial("l1_filter", 0.1, 0.5), trial("magnitude", 0.1, 1.0)]
    )
    records = drawn_trials(result)
    assert below_axis(records, "multiplications") == 3  # l1_filter's 0.6 is the third
    subtitle = pareto_picture(result, records, "multiplications")["title"]["subtitle"]
    assert subtitle.endswith(" Trials below the axis: 3.")


def test_the_intervals_of_a_frontier_are_drawn_whole(tmp_path: Path) -> None:
    few = [{**row, "validation_images": 200} for row in SMALL]
    result = result_of(tmp_path, few)
    records = drawn_trials(result)
    chart = pareto_chart(result, records, "multiplications", "all")
    scales = [layer["encoding"]["y"].get("scale") for layer in chart["layer"]]
    scale = next(scale for scale in scales if scale)
    on_frontier = [record for record in records if record["on_multiplications"]]
    lowest, highest = scale["domain"]
    assert (
        lowest < min(r["low"] for r in on_frontier) < max(r["high"] for r in on_frontier) < highest
    )
    assert not scale["nice"], "the axis ends where below_axis says"


def test_the_picture_shows_every_methods_colour(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, SMALL)
    write_report(folder)
    image = Image.open(io.BytesIO((folder / "frontier.png").read_bytes())).convert("RGB")
    assert image.width > 1500
    pixels = image.getcolors(image.width * image.height)
    assert pixels is not None
    colours = {bytes(colour).hex() for _, colour in pixels}  # type: ignore[arg-type]
    assert {c[1:] for c, _ in method_marks(METHODS, LIGHT).values()} <= colours


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        ("nonzero_multiplications", "non-zero multiplications"),
        ("latency_ms", "latency of one image"),
    ],
)
def test_the_pictures_title_names_the_cost_in_words(tmp_path: Path, cost: str, words: str) -> None:
    result = result_of(tmp_path, SMALL)
    title = pareto_picture(result, drawn_trials(result), cost)["title"]["text"]
    assert title.endswith(f": validation accuracy against {words}")
