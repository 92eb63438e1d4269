"""The report says what trials.csv holds, on its own page, whatever happened in the sweep."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.analysis.pareto import frontier
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.commands.report import main
from orchestrator.report.charts.vega_lite import chart_cost
from orchestrator.report.page import write_report
from orchestrator.report.tables.channels import channels_table
from orchestrator.report.tables.images import class_costs, deciding_trials, spread_table
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
    run_folder,
    trial,
)


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
    assert "<code>confirm: {seeds: 3}</code>" in page and "`" not in page


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
    ((title, images, table),) = class_costs(result, result.trials.iloc[:1])
    face = "55.0 M" if with_tests else "50.0 M"
    assert images == ("test" if with_tests else "validation")
    assert "rnp-000, " in title and "p -0.1" in title
    assert table.header == ("", "face", "None")
    assert table.rows == [
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
    [
        ("latency_ms",),
        ("parameters", "multiplications"),
        ("nonzero_multiplications",),
        ("mean_bits", "bit_operations"),
        ("winograd_multiplications", "footprint_bytes"),
    ],
)
def test_any_objectives_get_their_chart(tmp_path: Path, objectives: tuple[str, ...]) -> None:
    folder = run_folder(tmp_path, SMALL, objectives=objectives)
    write_report(folder)
    page = page_without_scripts(folder)
    drawn = [chart_cost(name) for name in objectives]
    for cost in {*drawn, "multiplications", "nonzero_multiplications", "latency_ratio"}:
        assert f'data-cost="{cost}"' in page
    assert page.index(f'data-cost="{drawn[0]}"') == page.index("data-cost=")


def test_bits_and_winograd_get_charts_where_a_method_saves_them(tmp_path: Path) -> None:
    bits = trial("bit_pruning", 0.88, 1.0, bit_operations=2e9, mean_bits=4.5)
    winograd = trial("joint_sparsity", 0.88, 1.0, winograd_multiplications=1e7)
    costs = ("bit_operations", "winograd_multiplications")
    for rows, drawn in ((SMALL, ()), ([*SMALL, bits], costs[:1]), ([*SMALL, winograd], costs[1:])):
        folder = tmp_path / f"{len(rows)}{drawn}"
        write_report(run_folder(folder, rows, methods=[*METHODS, "bit_pruning", "joint_sparsity"]))
        page = page_without_scripts(folder)
        assert [cost for cost in costs if f'data-cost="{cost}"' in page] == list(drawn)


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
