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
    beyond_axes,
    drawn_trials,
    pareto_chart,
    pareto_picture,
)
from orchestrator.report.charts.seed_means import confirmed_charts
from orchestrator.report.charts.vega_lite import Spec
from orchestrator.report.page import write_report
from orchestrator.run_folder.trial_files import write_reports
from tests.knowing_networks import knowing, swept
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
    assert by_id["l1_filter-006"]["latency_ratio"] == 0.55
    unknown = by_id["l1_filter-010"]
    assert "latency_ratio" not in unknown and not unknown.get("on_latency_ratio")
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
    folders += swept(path / "cascades", knowing(400, 4)).folders
    found: list[Spec] = []
    for each in folders:
        write_report(each)
        picture = re.search(r"^let picture = (.*);$", (each / "frontier.html").read_text(), re.M)
        figures = re.search(r"^const figures = (.*);$", (each / "report.html").read_text(), re.M)
        assert picture is not None and figures is not None
        found += [json.loads(picture[1]), *json.loads(figures[1])]
    return found


def test_charts_are_valid_vega_lite(tmp_path: Path) -> None:
    charts = all_charts(tmp_path)
    said = "\n".join(chart.get("description", "") for chart in charts)
    kinds = ("Test accuracy", "means over seeds", "latency", "gone", "rounds", "epochs", "reach")
    for kind in (*kinds, "How many images", "Accuracy of cascades"):
        assert kind in said, kind
    schema = load_schema()
    vega_lite = validator_for(schema)(schema)
    for chart in charts:
        surface = {"background": chart["background"] or "transparent"}  # null means that too
        vega_lite.validate(chart | surface)


def test_ruined_trials_do_not_stretch_the_chart_but_are_at_its_edge(tmp_path: Path) -> None:
    result = result_of(
        tmp_path, [*SMALL, trial("l1_filter", 0.1, 0.5), trial("magnitude", 0.1, 1.0)]
    )
    records = drawn_trials(result)
    assert beyond_axes(records, "multiplications") == 3  # l1_filter's 0.6 is the third
    subtitle = pareto_picture(result, records, "multiplications")["title"]["subtitle"]
    assert " ".join(subtitle).endswith(" Triangles at the edge: 3 beyond the axes.")


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
    assert not scale["nice"], "the axis ends where beyond_axes says"


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
        ("latency_ratio", "latency of one image over the dense network's"),
    ],
)
def test_the_pictures_title_names_the_cost_in_words(tmp_path: Path, cost: str, words: str) -> None:
    result = result_of(tmp_path, SMALL)
    title = pareto_picture(result, drawn_trials(result), cost)["title"]["text"]
    assert title.endswith(f": validation accuracy against {words}")


STORED = Path(__file__).with_name("frontier_of_small.png")
LARGEST_DIFFERENCE = 40  # of 255, in a square of 14 pixels: fonts differ, marks and lines do not


def test_the_picture_looks_as_the_stored_one(tmp_path: Path) -> None:
    """Where it is to look otherwise, look at the one that is made, and put it in its place."""
    rows = [*SMALL, trial("l1_filter", 0.1, 0.5), trial("magnitude", 0.894, 2.5)]
    folder = run_folder(tmp_path, rows)
    write_report(folder)
    squares = []
    for path in (folder / "frontier.png", STORED):
        with Image.open(path) as image:
            size = (image.width // 28, image.height // 28)
            squares.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), int))
    assert squares[0].shape == squares[1].shape
    assert np.abs(squares[0] - squares[1]).max() < LARGEST_DIFFERENCE
    assert np.abs(squares[1] - squares[1].mean(axis=(0, 1))).max() > 2 * LARGEST_DIFFERENCE


def test_trials_beyond_the_axes_are_marked_at_their_edge_and_none_is_above_one(
    tmp_path: Path,
) -> None:
    rows = [
        *({**row, "validation_images": 30} for row in SMALL),
        trial("vanilla", 1.0, 0.9, validation_images=30),
        trial("l1_filter", 0.1, 0.5),
        trial("magnitude", 0.894, 2.5),
    ]
    result = result_of(tmp_path, rows)
    records = drawn_trials(result)
    assert max(record["high"] for record in records) == 1
    chart = pareto_chart(result, records, "multiplications", "all")
    by_shape = {layer["mark"].get("shape"): layer for layer in chart["layer"]}
    below, beyond = by_shape["triangle-down"], by_shape["triangle-right"]
    low, high = below["encoding"]["y"]["scale"]["domain"]
    most = below["encoding"]["x"]["scale"]["domain"][1]
    assert low > 0.1 and high == 1 and 100 < most < 250
    assert {each["as"]: each["calculate"] for each in below["transform"][1:]} == {
        "edge_x": f"min(datum.multiplications, {most})", "edge_y": f"{low}",
    }  # fmt: skip
    assert {each["as"]: each["calculate"] for each in beyond["transform"][1:]} == {
        "edge_x": f"{most}", "edge_y": "datum.val_accuracy",
    }  # fmt: skip
    assert beyond_axes(records, "multiplications") == 2


def test_the_dense_network_is_drawn_on_top_of_all_also_where_it_is_beaten(tmp_path: Path) -> None:
    rows = [*SMALL, trial("vanilla", 0.95, 0.9)]
    result = result_of(tmp_path, rows)
    chart = pareto_chart(result, drawn_trials(result), "multiplications", "all")
    last = chart["layer"][-1]
    assert "datum.method === 'dense'" in last["transform"][0]["filter"]
    assert "on_multiplications" not in last["transform"][0]["filter"]
    assert last["encoding"]["opacity"]["value"] > 0.1 and last["mark"]["size"] > 100


def test_every_frontier_chart_joins_what_is_unbeaten(tmp_path: Path) -> None:
    result = result_of(tmp_path, CONFIRMED)
    charts = [
        confirmed_charts(result)["all"],
        pareto_chart(result, drawn_trials(result), "latency_ratio", "all"),
        pareto_chart(result, drawn_trials(result), "multiplications", ""),
    ]
    for chart in charts:
        assert "line" in {layer["mark"]["type"] for layer in chart["layer"]}
    unbeaten = {value["trial"] for value in charts[0]["data"]["values"] if value["unbeaten"]}
    assert unbeaten == {
        "dense-000", "vanilla-002", "random_channels-004", "l1_filter-005",
    }, "l1_filter-006 costs more than l1_filter-005, and its test accuracy is lower"  # fmt: skip
