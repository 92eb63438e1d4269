"""The report says what trials.csv holds, on its own page, whatever happened in the sweep."""

import io
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from orchestrator.comparison import compare_methods, compare_pairs
from orchestrator.confirmed import confirmed
from orchestrator.frontier import frontier
from orchestrator.report.answer import answer
from orchestrator.report.channels import channels_table
from orchestrator.report.charts import (
    CSS,
    LIGHT,
    below_chart,
    chart_data,
    frontier_chart,
    picture_spec,
)
from orchestrator.report.facts import failures, key_figures
from orchestrator.report.findings import cautions, remarks
from orchestrator.report.method_tables import comparison_table, effort_table, pairs_table
from orchestrator.report.page import main, write_report
from orchestrator.report.per_image import class_costs, deciding_trials, spread_table
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.trial_tables import depth_table, frontier_table
from orchestrator.trials_table import (
    COLUMNS,
    TrialsTable,
    append_multiplications_per_class,
    read_trials,
    write_images,
)

METHODS = ("dense", "vanilla", "random_channels", "l1_filter", "magnitude")
DENSE = 1e8


def trial(method: str, val_accuracy: float, share: float, **columns: Any) -> dict[str, Any]:
    """A row of trials.csv: a ten-class network, 100 M multiplications and 10 ms when dense."""
    usual = {
        "phase": "search",
        "method": method,
        "dataset": "digits",
        "backbone": "conv",
        "seed": 0,
        "status": "completed",
        "val_accuracy": val_accuracy,
        "multiplications": share * DENSE,
        "nonzero_multiplications": share * DENSE,
        "dense_multiplications": DENSE,
        "parameters": int(1e6 * share),
        "dense_parameters": 1_000_000,
        "latency_ms": 10 * share + 1,
        "dense_latency_ms": 10.0,
        "duration_s": 30.0,
        "cell": "all",
        "dense_val_accuracy": 0.9,
        "classes": 10,
        "validation_images": 10_000,
        "fine_tuning_epochs": 5,
        "epochs_spent": 5,
        "started_at": "2026-11-21T10:00:00.000+00:00",
        "device": "cpu",
        "threads": 1,
        "torch_version": "2.14.1",
        f"{method}.keep_ratio": share,
    }
    return {**usual, **columns}


def failed(method: str, error: str, **columns: Any) -> dict[str, Any]:
    row = trial(method, 0, 0, status="failed", error=error, **columns)
    unknown = ("val_accuracy", "multiplications", "nonzero_multiplications", "latency_ms")
    return {**row, **dict.fromkeys(unknown)}


SMALL = [  # one cell; at half the cost l1_filter is ahead of random_channels by two points
    trial("dense", 0.9, 1.0),
    trial("vanilla", 0.80, 0.25),
    trial("vanilla", 0.85, 0.5),
    trial("random_channels", 0.70, 0.2),
    trial("random_channels", 0.86, 0.5),
    trial("l1_filter", 0.75, 0.2),
    trial("l1_filter", 0.88, 0.45),
    trial("l1_filter", 0.60, 0.3),
    trial("magnitude", 0.895, 1.0, nonzero_multiplications=0.3 * DENSE),
]


def run_folder(
    path: Path,
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str] = METHODS,
    objectives: Sequence[str] = ("multiplications",),
    name: str = "small",
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    sweep = {
        "name": name,
        "data": {"name": "digits", "train_images": "all"},
        "backbone": {"name": "conv", "depth": {"grid": [4, 8]}},
        "training": {"epochs": 20, "distillation": None},
        "fine_tuning": {"epochs": 5},
        "methods": {method: {} for method in methods},
        "seeds": [0],
        "objectives": {"val_accuracy": "maximize", **dict.fromkeys(objectives, "minimize")},
        "search": {"sampler": "tpe", "trials": 10, "seed": 0},
    }
    (path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    options = dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)
    table = TrialsTable(path / "trials.csv", [*COLUMNS, *options])
    for number, row in enumerate(rows):
        table.append({"trial_id": f"{row['method']}-{number:03}", **row})
    return path


def result_of(path: Path, rows: Sequence[dict[str, Any]], **sweep: Any) -> SweepResult:
    return SweepResult.read(run_folder(path, rows, **sweep))


def page_without_scripts(folder: Path) -> str:
    page = (folder / "report.html").read_text()
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def drawn_trials(folder: Path) -> list[dict[str, Any]]:
    """The records that the page's charts draw, from the page itself."""
    line = re.search(r"^const trials = (.*);$", (folder / "report.html").read_text(), re.MULTILINE)
    assert line is not None
    records: list[dict[str, Any]] = json.loads(line[1])
    return records


# The answer


def test_the_answer_names_the_best_method_at_half_the_cost(tmp_path: Path) -> None:
    assert answer(result_of(tmp_path, SMALL)) == (
        "l1_filter is the most accurate at half of the dense network's multiplications: "
        "validation accuracy 0.880 against the dense network's 0.900 before fine-tuning.",
        "That trial needs 45.0 M multiplications, 45 % of dense. "
        "The control, random_channels, is 2.0 points behind.",
    )


def test_the_answer_says_what_cannot_be_told_apart(tmp_path: Path) -> None:
    rows = [{**row, "validation_images": 400} for row in SMALL]
    _, more = answer(result_of(tmp_path, rows))
    assert "Too close to it for 400 validation images to tell apart: random_channels and" in more
    assert "control" not in more


def test_the_answer_says_when_the_control_is_not_beaten(tmp_path: Path) -> None:
    rows = [*SMALL, trial("random_channels", 0.88, 0.4)]
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.startswith("random_channels and l1_filter are the most accurate")
    assert "That trial needs 40.0 M" in more
    assert "no method is more accurate here" in more


def test_the_answer_counts_cells_where_there_are_several(tmp_path: Path) -> None:
    rows = [{**row, "cell": f"depth={depth}"} for row in SMALL for depth in (4, 8, 12)]
    rows.append(trial("vanilla", 0.89, 0.5, cell="depth=8"))
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.endswith("l1_filter in 2 and vanilla in 1 of 3 settings.")
    assert more.startswith("The best of all is vanilla at depth=8 with 50.0 M multiplications")


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ([], "No trial completed, so there is no frontier."),
        ([failed("l1_filter", "OSError: x")], "No trial completed, so there is no frontier."),
        (
            [trial("l1_filter", 0.8, 0.6)],
            "No trial needs half of the dense network's multiplications or less.",
        ),
    ],
)
def test_the_answer_says_when_there_is_none(
    tmp_path: Path, rows: list[dict[str, Any]], headline: str
) -> None:
    assert answer(result_of(tmp_path, rows)) == (headline, "")


SEEDS = [  # at half the cost l1_filter's mean is ahead; random_channels has the luckiest seed
    *(trial("l1_filter", value, 0.4, seed=seed) for seed, value in enumerate((0.80, 0.82, 0.84))),
    *(trial("l1_filter", 0.70, 0.2, seed=seed) for seed in range(3)),
    *(trial("vanilla", value, 0.5, seed=seed) for seed, value in enumerate((0.70, 0.72, 0.74))),
    *(trial("rnp", value, 0.3, seed=seed) for seed, value in enumerate((0.60, 0.90, 0.78))),
    trial("magnitude", 0.95, 0.5, seed=1),
    trial("magnitude", 0.95, 0.9, seed=2),
]


def test_of_several_seeds_the_answer_is_of_means_and_not_of_the_luckiest(tmp_path: Path) -> None:
    headline, more = answer(result_of(tmp_path, SEEDS))
    assert headline == (
        "l1_filter is the most accurate at half of the dense network's multiplications: validation "
        "accuracy 0.820 ± 0.020 (mean of 3 seeds) against the dense network's 0.900 ± 0.000 before "
        "fine-tuning."
    )
    assert more == (
        "Its trials need in the mean 40.0 M multiplications, 40 % of dense. Of each seed the most "
        "accurate trial so cheap counts. Too close to it for 3 seeds and 10,000 validation images "
        "to tell apart: rnp. So cheap in some seeds alone, and not compared here: magnitude."
    )


def test_of_several_seeds_the_tables_have_means_with_their_number(tmp_path: Path) -> None:
    tested = [
        {**row, "test_accuracy": row["val_accuracy"] - 0.01, "train_accuracy": 0.99}
        for row in (*SEEDS, *(trial("dense", 0.9, 1.0, seed=seed) for seed in range(3)))
    ]
    result = result_of(tmp_path, tested)
    assert "on test images these come to 0.810 ± 0.020" in answer(result)[1]
    first = key_figures(result)[0]
    assert (first.value, first.detail) == ("0.820", "l1_filter, 40.0 M, mean of 3 seeds")
    table = depth_table(result, confirmed(result.trials))
    records = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    rows = {record["method"]: record for record in records}
    assert set(rows) == {"vanilla", "l1_filter", "rnp"}
    assert rows["vanilla"]["accuracy after"] == "0.720 ± 0.020"
    assert rows["vanilla"]["on test images"] == "0.710 ± 0.020"
    assert rows["vanilla"]["on training images"] == "0.990 ± 0.000"
    assert rows["vanilla"]["dense fine-tuned, on training images"] == "0.990 ± 0.000"
    assert rows["vanilla"]["dense fine-tuned, on test images"] == "0.890 ± 0.000"
    assert rows["vanilla"]["seeds"] == "3" and "trial" not in table.header


def test_without_a_method_at_half_the_cost_in_every_seed_there_is_no_answer(tmp_path: Path) -> None:
    rows = [row for row in SEEDS if row["method"] == "magnitude"]
    headline = "No method comes to half of the dense network's multiplications in every seed."
    assert answer(result_of(tmp_path, rows)) == (headline, "")


# What to be careful about


def test_methods_that_are_judged_on_fewer_images_are_named(tmp_path: Path) -> None:
    rows = [*SMALL, trial("policy_gradient", 0.89, 0.4, validation_images=400, reward_images=9600)]
    result = result_of(tmp_path, rows, methods=[*METHODS, "policy_gradient"])
    said = "\n".join(cautions(result))
    assert "10,000 validation images, those of policy_gradient over 400: at 0.900 one" in said
    assert "standard error is 0.3 to 1.5 points, and methods closer than about 0.6 to 3.0" in said
    assert "Too close to it for 400 to 10,000 validation images" in answer(result)[1]


def test_standard_errors_that_round_alike_are_said_once(tmp_path: Path) -> None:
    rows = [*SMALL, trial("policy_gradient", 0.89, 0.4, validation_images=8000, reward_images=2000)]
    result = result_of(tmp_path, rows, methods=[*METHODS, "policy_gradient"])
    said = "\n".join(cautions(result))
    assert "standard error is 0.3 points, and methods closer than about 0.6 to 0.7 points" in said


def test_missing_controls_are_said(tmp_path: Path) -> None:
    rows = [trial("l1_filter", 0.8, 0.5)]
    said = "\n".join(cautions(result_of(tmp_path, rows, methods=["l1_filter"])))
    for control in ("dense", "random_channels", "vanilla"):
        assert f"{control} is not in this sweep" in said


def test_a_fair_sweep_with_several_seeds_gets_no_caution_but_the_noise(tmp_path: Path) -> None:
    rows = [trial(method, 0.5, 0.5, seed=seed) for method in METHODS for seed in (0, 1)]
    (noise,) = cautions(result_of(tmp_path, rows))
    # (5000 + 2) / (10000 + 4) is a half, so the error is 50 points / sqrt(10004)
    assert noise.startswith("Accuracies are over 10,000 validation images: at 0.500 one standard")
    assert "error is 0.5 points, and methods closer than about 1.0 points" in noise


def test_unequal_tries_failures_and_machines_are_said(tmp_path: Path) -> None:
    rows = [*SMALL, failed("magnitude", "OSError: x"), trial("magnitude", 0.8, 1.0, device="cuda")]
    said = "\n".join(cautions(result_of(tmp_path, rows)))
    assert "1 of 11 trials failed" in said
    assert "dense 1, vanilla 2, random_channels 2, l1_filter 3 and magnitude 3" in said
    assert "One seed" in said
    assert "cpu, 1 threads and cuda, 1 threads" in said


def test_zeros_that_stay_in_place_are_not_sold_as_savings(tmp_path: Path) -> None:
    said = remarks(result_of(tmp_path, SMALL))["nonzero_multiplications"]
    assert "magnitude leaves its zeros in place and removes no channel" in said
    assert "30 % of the dense network's multiplications by weights that are not zero" in said
    assert "ran 100 % of them and took 1.10 times its latency" in said
    assert "l1_filter" not in said


def test_latency_is_compared_with_the_dense_networks(tmp_path: Path) -> None:
    said = remarks(result_of(tmp_path, SMALL))["latency_ms"]
    # 7 trials; their latencies over 10 ms: 0.3, 0.3, 0.35, 0.4, 0.55, 0.6, 0.6
    assert said.startswith("7 trials at half of the dense multiplications or less took 0.40 times")
    assert "(0.30 to 0.60); none of them was slower" in said


# Tables


def test_the_comparison_has_hand_worked_figures_and_marks_the_best(tmp_path: Path) -> None:
    result = result_of(tmp_path, SMALL)
    table = comparison_table(result, compare_methods(result.trials, result.objectives))
    l1 = 0.25 * 0.65 + 0.55 * 0.78  # the staircase from 0.2 to 0.45 and from there to 1
    assert table.header == (
        "method",
        "hypervolume",
        "95 % interval",
        "at ≤ 25 %",
        "at ≤ 50 %",
        "at ≤ 75 %",
        "completed",
    )
    assert table.rows == [
        ("dense", "0.000", "", "–", "–", "–", "1 of 1"),  # noqa: RUF001
        ("vanilla", "0.550", "0.375 to 0.550", "0.800", "0.850", "0.850", "2 of 2"),
        ("random_channels", "0.560", "0.380 to 0.560", "0.700", "0.860", "0.860", "2 of 2"),
        ("l1_filter", f"{l1:.3f}", f"0.350 to {l1:.3f}", "0.750", "0.880", "0.880", "3 of 3"),
        ("magnitude", "0.000", "", "–", "–", "–", "1 of 1"),  # noqa: RUF001
    ]
    assert table.best_rows == {3}


def test_the_frontier_table_leaves_out_what_is_empty_or_the_same_for_all(tmp_path: Path) -> None:
    result = result_of(tmp_path, SMALL)
    points = frontier(result.trials, result.objectives)
    table = frontier_table(result, points[points["on_overall_frontier"]])
    assert table.header == (
        "method",
        "settings",
        "validation",
        "multiplications",
        "of dense",
        "parameters",
        "latency",
        "trial",
    )
    assert [row[0] for row in table.rows] == ["l1_filter", "vanilla", "l1_filter", "dense"]
    assert table.rows[0] == (
        "l1_filter",
        "keep_ratio 0.2",
        "0.750",
        "20.0 M",
        "20 %",
        "0.200 M",
        "3.00 ms",
        "l1_filter-005",
    )


def test_effort_is_summed_per_method(tmp_path: Path) -> None:
    rows = [*SMALL, failed("l1_filter", "OSError: x", epochs_spent=2, duration_s=60.0)]
    table = effort_table(result_of(tmp_path, rows))
    assert table.rows[3] == ("l1_filter", "4", "3", "5", "2 to 5", "2 min 30 s", "30 s")


def test_unequal_epochs_and_passes_beside_them_are_said(tmp_path: Path) -> None:
    rows = [*SMALL, trial("rnp", 0.8, 0.5, fine_tuning_epochs=7, q_learning_epochs=12.34)]
    result = result_of(tmp_path, rows, methods=(*METHODS, "rnp"))
    said = "\n".join(cautions(result))
    assert "not given the same fine-tuning epochs: dense 5, vanilla 5," in said
    assert "for Q-learning: rnp 12.3 times" in said and "for rewards" not in said
    table = effort_table(result)
    place = table.header.index("Q-learning passes")
    assert [row[place] for row in table.rows] == ["", "", "", "", "", "12.3"]
    assert "reward passes" not in table.header


def test_pairs_are_a_table_of_the_row_against_the_column(tmp_path: Path) -> None:
    result = result_of(tmp_path, SMALL)
    table = pairs_table(result, compare_pairs(result.trials))
    assert table.header[0] == "ahead of →" and table.header[-1] == "magnitude"
    cells = {
        (row[0], other): said
        for row in table.rows
        for other, said in zip(table.header[1:], row[1:], strict=True)
    }
    # dense and l1_filter meet at 100 % alone, where dense is ahead
    assert cells["dense", "l1_filter"].startswith("100 % (")
    # l1_filter's 0.75 against 0.70 from 20 % on, and 0.88 against 0.86 at the end
    assert cells["l1_filter", "random_channels"].startswith("100 % (")
    assert cells["random_channels", "l1_filter"].startswith("0 %")
    assert cells["dense", "magnitude"] == "100 %"  # one try against one
    assert cells["dense", "dense"] == "–"  # noqa: RUF001


def test_completed_trials_without_a_number_are_listed_with_the_failures(tmp_path: Path) -> None:
    rows = [
        *SMALL,
        trial("magnitude", float("nan"), 0.5),
        trial("vanilla", 0.9, 0.5, multiplications=math.inf),
    ]
    found = {f.reason: f.trial_ids for f in failures(result_of(tmp_path, rows))}
    assert found == {
        "completed without a number for val_accuracy": ["magnitude-009"],
        "completed without a number for multiplications": ["vanilla-010"],
    }


def test_equal_errors_are_listed_together(tmp_path: Path) -> None:
    rows = [
        failed("l1_filter", "OSError: rare\nat line 1"),
        failed("l1_filter", "ValueError: common\nat line 2"),
        failed("magnitude", "ValueError: common\nat line 3"),
        trial("magnitude", 0.5, 0.5, status="stopped"),
    ]
    found = [(f.reason, f.trial_ids, f.text) for f in failures(result_of(tmp_path, rows))]
    assert found == [
        ("ValueError: common", ["l1_filter-001", "magnitude-002"], "ValueError: common\nat line 2"),
        ("OSError: rare", ["l1_filter-000"], "OSError: rare\nat line 1"),
        ("stopped", ["magnitude-003"], "stopped"),
    ]


# Charts


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
    assert {c[1:] for c in (LIGHT.ink, LIGHT.control, *LIGHT.methods[:3])} <= colours


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


# The files


def test_the_report_is_four_files_and_the_same_when_made_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, SMALL)
    files = ("frontier.csv", "frontier.png", "report.html", "report.md")
    assert main([str(folder)]) == 0
    first = [(folder / name).read_bytes() for name in files]
    assert main([str(folder)]) == 0
    assert [(folder / name).read_bytes() for name in files] == first
    points = read_trials(folder / "frontier.csv")
    assert list(points.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert points.columns[-1] == "on_overall_frontier"
    assert len(points) == 8


def test_a_folder_that_is_no_run_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path} is no run folder: it has no sweep.yaml.\n"


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, SMALL)
    write_report(folder)
    page = page_without_scripts(folder)
    assert not re.search(r"https?:|//cdn|<link|@import|url\(|\bsrc=", page)
    everything = (folder / "report.html").read_text()
    assert "<script src" not in everything
    assert "cdn.jsdelivr" not in everything
    assert "window.vegaEmbed" in everything


def test_names_and_errors_cannot_write_into_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    rows = [
        *SMALL,
        trial("l1_filter", 0.5, 0.5, cell=evil),
        failed("l1_filter", f"OSError: {evil}"),
    ]
    folder = run_folder(tmp_path, rows, name=f"<b>{evil}")
    write_report(folder)
    assert evil not in (folder / "report.html").read_text()
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page_without_scripts(folder)
    assert evil in {record["cell"] for record in drawn_trials(folder)}
    markdown = (folder / "report.md").read_text()
    assert r"OSError: \</script\>" in markdown


def folder_with_images(path: Path, with_tests: bool = True) -> Path:
    """rnp-000 is on the frontier and decides per image; so does rnp-001, which others beat."""
    rows = [
        trial("rnp", 0.88, 0.4, multiplications_p5=2e7, multiplications_p50=3e7, **{"rnp.p": -0.1}),
        trial("rnp", 0.60, 0.5, **{"rnp.p": -0.2}),
        trial("l1_filter", 0.8, 0.3),
    ]
    folder = run_folder(path, rows, methods=["rnp", "l1_filter"])
    write_images(folder, "rnp-000", ["face", "None"], [True, False], [50_000_000, 30_000_000])
    write_images(folder, "rnp-001", ["face", "None"], [True, True], [50_000_000, 50_000_000])
    costs = {"face": {"conv1": 3e7, "conv2": 2e7}, "None": {"conv1": 3e7}}
    for trial_id in ("rnp-000", "rnp-001", "l1_filter-002"):
        file = folder / "multiplications_per_class.csv"
        append_multiplications_per_class(file, trial_id, costs)
    if with_tests:
        file = folder / "test_multiplications_per_class.csv"
        tested = {"face": {"conv1": 3e7, "conv2": 2.5e7}, "None": {"conv1": 3e7, "conv2": 1e6}}
        append_multiplications_per_class(file, "rnp-000", tested)
    return folder


def test_what_single_images_cost_is_said_of_networks_on_a_frontier_that_decide_per_image(
    tmp_path: Path,
) -> None:
    folder = folder_with_images(tmp_path)
    result = SweepResult.read(folder)
    deciding = deciding_trials(result, frontier(result.trials, result.objectives))
    assert list(deciding["trial_id"]) == ["rnp-000"]
    spread = spread_table(result, deciding)
    figures = dict(zip(spread.header, spread.rows[0], strict=True))
    assert figures["mean"] == "40.0 M" and figures["of dense"] == "40 %"
    assert (figures["p5"], figures["median"]) == ("20.0 M", "30.0 M")


@pytest.mark.parametrize(
    ("with_tests", "none", "conv2"), [(True, "31.0 M", "1.00 M"), (False, "30.0 M", "0 M")]
)
def test_classes_have_the_whole_networks_figures_and_each_layers(
    tmp_path: Path, with_tests: bool, none: str, conv2: str
) -> None:
    """Of test images where there are any; a layer that a class never runs costs it nothing."""
    folder = folder_with_images(tmp_path, with_tests)
    result = SweepResult.read(folder)
    (costs,) = class_costs(result, result.trials.iloc[:1])
    face = "55.0 M" if with_tests else "50.0 M"
    assert costs.images == ("test" if with_tests else "validation")
    assert "rnp-000, " in costs.title and "p -0.1" in costs.title
    assert costs.table.header == ("", "face", "None")
    assert costs.table.rows == [
        ("whole network", face, none),
        ("of dense", f"{float(face[:2]):.0f} %", f"{float(none[:2]):.0f} %"),
        ("conv1", "30.0 M", "30.0 M"),
        ("conv2", "25.0 M" if with_tests else "20.0 M", conv2),
    ]


def test_channels_kept_and_of_networks_that_decide_what_the_mean_image_needed(
    tmp_path: Path,
) -> None:
    """Three faces and one other: the mean is theirs in that proportion."""
    rows = [trial("dense", 0.9, 1.0), trial("l1_filter", 0.8, 0.3), trial("rnp", 0.88, 0.4)]
    folder = run_folder(tmp_path, rows, methods=["dense", "l1_filter", "rnp"])
    for trial_id, width in (("dense-000", 8), ("l1_filter-001", 3), ("rnp-002", 8)):
        path = folder / "networks" / f"{trial_id}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({"conv1.weight": np.zeros((width, 3, 3, 3), dtype=np.float32)}, path)
    table = folder / "multiplications_per_class.csv"
    append_multiplications_per_class(table, "dense-000", {"face": {"conv1": 8e6}, "no": {}})
    append_multiplications_per_class(table, "rnp-002", {"face": {"conv1": 4e6}, "no": {}})
    write_images(folder, "rnp-002", ["face", "no", "face", "face"], [True] * 4, [4e6, 0, 4e6, 4e6])
    result = SweepResult.read(folder)
    found = channels_table(result, result.searched)
    assert found.header == ("method", "conv1", "trial")
    assert [row[:2] for row in found.rows] == [("l1_filter", "3 of 8"), ("rnp", "38 %")]


def test_both_reports_have_the_classes_only_where_a_network_decides(tmp_path: Path) -> None:
    folder = folder_with_images(tmp_path / "deciding")
    other = run_folder(tmp_path / "other", SMALL)
    for file in ("report.html", "report.md"):
        for each in (folder, other):
            write_report(each)
        text = (folder / file).read_text()
        assert "What single images cost" in text and "31.0 M" in text
        assert "What single images cost" not in (other / file).read_text()


def test_a_method_named_by_its_module_is_one_like_the_others(tmp_path: Path) -> None:
    mine = "my_package.methods:Mine"
    folder = run_folder(tmp_path, [trial(mine, 0.8, 0.4), trial(mine, 0.7, 0.3)], methods=[mine])
    write_report(folder)
    assert f"**{mine} is the most accurate" in (folder / "report.md").read_text()
    assert {record["settings"] for record in drawn_trials(folder)} == {
        "keep_ratio 0.4",
        "keep_ratio 0.3",
    }


@pytest.mark.parametrize(
    ("rows", "methods"),
    [
        ([], METHODS),
        ([failed("l1_filter", "OSError: x")], METHODS),
        ([trial("l1_filter", 0.8, 0.5)], ["l1_filter"]),
        ([trial("l1_filter", 0.8, 0.5)] * 3, ["l1_filter"]),
        ([{"phase": "search", "method": "dense", "status": "stopped", "cell": "all"}], ["dense"]),
    ],
    ids=["no trial", "none completed", "one point", "ties", "a row of almost nothing"],
)
def test_whatever_is_missing_the_report_is_written(
    tmp_path: Path, rows: list[dict[str, Any]], methods: list[str]
) -> None:
    folder = run_folder(tmp_path, rows, methods=methods)
    write_report(folder)
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"\b(nan|NaN|<NA>|None)\b", page_without_scripts(folder))


@pytest.mark.parametrize(
    "objectives",
    [("latency_ms",), ("parameters", "multiplications"), ("nonzero_multiplications",)],
)
def test_any_objectives_get_their_chart(tmp_path: Path, objectives: tuple[str, ...]) -> None:
    folder = run_folder(tmp_path, SMALL, objectives=objectives)
    write_report(folder)
    page = page_without_scripts(folder)
    for cost in {*objectives, "multiplications", "nonzero_multiplications", "latency_ms"}:
        assert f'data-cost="{cost}"' in page
    assert page.index(f'data-cost="{objectives[0]}"') == page.index("data-cost=")


def test_two_thousand_trials_make_a_page_of_less_than_five_megabytes_in_ten_seconds(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        trial(method, accuracy, share, cell=f"depth={depth} dropout={dropout}")
        for depth in (4, 6, 8)
        for dropout in (0.0, 0.1)
        for method in METHODS
        for accuracy, share in rng.random((67, 2))
    ]
    assert len(rows) > 2000
    folder = run_folder(tmp_path, rows)
    start = time.process_time()  # the time of this process, however busy the machine is
    write_report(folder)
    assert time.process_time() - start < 10
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert len(drawn_trials(folder)) == len(rows)
