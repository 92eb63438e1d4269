"""The tables of a report hold what trials.csv does."""

import math
from pathlib import Path

from orchestrator.analysis.pareto import frontier
from orchestrator.report.summary.cautions import cautions, failures
from orchestrator.report.tables.methods import comparison_table, effort_table, pairs_table
from orchestrator.report.tables.trials import frontier_table
from tests.report_rows import (
    METHODS,
    SMALL,
    failed,
    result_of,
    trial,
)


def test_the_comparison_has_hand_worked_figures_and_marks_the_best(tmp_path: Path) -> None:
    result = result_of(tmp_path, SMALL)
    table = comparison_table(result)
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
    table = pairs_table(result)
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
    found = {reason: names for reason, names, _ in failures(result_of(tmp_path, rows))}
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
    found = failures(result_of(tmp_path, rows))
    assert found == [
        ("ValueError: common", ["l1_filter-001", "magnitude-002"], "ValueError: common\nat line 2"),
        ("OSError: rare", ["l1_filter-000"], "OSError: rare\nat line 1"),
        ("stopped", ["magnitude-003"], "stopped"),
    ]
