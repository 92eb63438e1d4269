"""The report says what trials.csv holds, on its own page, whatever happened in the sweep."""

import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.analysis.comparison import compare_methods, compare_pairs
from orchestrator.analysis.pareto import frontier
from orchestrator.report.answer import answer
from orchestrator.report.channels import channels_table
from orchestrator.report.facts import failures
from orchestrator.report.findings import cautions, remarks
from orchestrator.report.method_tables import comparison_table, effort_table, pairs_table
from orchestrator.report.page import main, write_report
from orchestrator.report.per_image import class_costs, deciding_trials, spread_table
from orchestrator.report.sweep_result import SweepResult
from orchestrator.report.trial_tables import frontier_table
from orchestrator.run_folder.trials_table import (
    COLUMNS,
    append_multiplications_per_class,
    read_trials,
    write_images,
)
from tests.report_rows import (
    METHODS,
    SMALL,
    drawn_trials,
    failed,
    folder_with_images,
    page_without_scripts,
    result_of,
    run_folder,
    trial,
)

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
    elsewhere = trial("magnitude", 0.8, 1.0, device="cuda", threads=2)
    rows = [*SMALL, failed("magnitude", "OSError: x"), elsewhere]
    said = "\n".join(cautions(result_of(tmp_path, rows)))
    assert "1 of 11 trials failed" in said
    assert "dense 1, vanilla 2, random_channels 2, l1_filter 3 and magnitude 3" in said
    assert "One seed" in said
    assert "cpu, 1 thread and cuda, 2 threads" in said


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
