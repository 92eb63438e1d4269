"""The charts of a report mark what its tables hold."""

import io
from pathlib import Path

import altair as alt
import numpy as np
import pytest
from PIL import Image

from orchestrator.analysis.pareto import frontier
from orchestrator.palette import CSS, LIGHT, method_marks
from orchestrator.report.charts import (
    below_chart,
    chart_data,
    frontier_chart,
    picture_spec,
)
from orchestrator.report.page import write_report
from tests.report_rows import (
    METHODS,
    SMALL,
    failed,
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
    records = chart_data(result)
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
    records = chart_data(result_of(tmp_path, rows))
    assert len(records) == len(SMALL) + 1
    by_id = {record["trial_id"]: record for record in records}
    assert by_id["l1_filter-006"]["multiplications"] == 45.0
    assert "latency_ms" not in by_id["l1_filter-010"]
    assert (
        "on_latency_ms" not in by_id["l1_filter-010"] or not by_id["l1_filter-010"]["on_latency_ms"]
    )
    assert records[-1]["method"] == "dense"  # drawn last, on top


@pytest.mark.parametrize("cell", ["all", None])
@pytest.mark.parametrize("cost", ["multiplications", "latency_ms"])
def test_charts_are_valid_vega_lite(tmp_path: Path, cost: str, cell: str | None) -> None:
    result = result_of(tmp_path, SMALL)
    chart = frontier_chart(result, chart_data(result), cost, cell, CSS, alt.Legend())
    chart.to_dict(validate=True)


def test_ruined_trials_do_not_stretch_the_chart_but_are_counted(tmp_path: Path) -> None:
    result = result_of(
        tmp_path, [*SMALL, trial("l1_filter", 0.1, 0.5), trial("magnitude", 0.1, 1.0)]
    )
    records = chart_data(result)
    assert below_chart(records, "multiplications") == 3  # l1_filter's 0.6 is the third
    subtitle = picture_spec(result, records, "multiplications")["title"]["subtitle"]
    assert subtitle.endswith(" Trials below the axis: 3.")


def test_the_intervals_of_a_frontier_are_drawn_whole(tmp_path: Path) -> None:
    few = [{**row, "validation_images": 200} for row in SMALL]
    result = result_of(tmp_path, few)
    records = chart_data(result)
    chart = frontier_chart(result, records, "multiplications", "all", CSS, None).to_dict()
    scales = [layer["encoding"]["y"].get("scale") for layer in chart["layer"]]
    scale = next(scale for scale in scales if scale)
    on_frontier = [record for record in records if record["on_multiplications"]]
    lowest, highest = scale["domain"]
    assert (
        lowest < min(r["low"] for r in on_frontier) < max(r["high"] for r in on_frontier) < highest
    )
    assert not scale["nice"], "the axis ends where below_chart says"


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
    title = picture_spec(result, chart_data(result), cost)["title"]["text"]
    assert title.endswith(f": validation accuracy against {words}")
