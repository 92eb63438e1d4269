"""What a sweep found, in the first sentences of its report and the last lines of a terminal."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.answer import answer, last_lines
from orchestrator.analysis.decision import Decision, decisions, headline_decisions
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report.summary.key_figures import key_figures
from orchestrator.report.tables.answers import methods_at_budget_table
from tests.report_rows import CONFIRMED, SMALL, failed, result_of, trial


def test_the_answer_names_the_best_method_at_half_the_cost(tmp_path: Path) -> None:
    assert answer(result_of(tmp_path, SMALL)) == (
        "l1_filter is the most accurate at half of the dense network's multiplications: "
        "validation accuracy 0.880, dense 0.900.",
        "The dense network was fine-tuned as long. l1_filter needs 45.0 M multiplications, 45 % of "
        "dense, and 0.55 times the dense latency. "
        "The control, random_channels, is 2.0 points behind.",
    )


def test_the_last_lines_have_each_budget_and_the_command_that_exports(tmp_path: Path) -> None:
    result = result_of(tmp_path, CONFIRMED)
    lines = last_lines(result)
    assert lines[0] == answer(result)[0]
    assert lines[2] == (
        "  50 %: vanilla-002 (keep_ratio 0.5), test accuracy 0.850 ± 0.010 (4.0 points behind "
        "dense), 50 % of the dense multiplications, 0.60 times the dense latency"
    )
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["75 %", "50 %", "25 %"]
    assert lines[4] == (
        f"Export it: python -m orchestrator.choose {tmp_path} --trial vanilla-002 "
        "--export my_network"
    )


def test_without_the_dense_network_the_cost_in_accuracy_is_said_to_be_unknown(
    tmp_path: Path,
) -> None:
    headline, more = answer(result_of(tmp_path, SMALL[1:]))
    assert headline.endswith("multiplications: validation accuracy 0.880.")
    assert "What it costs in accuracy is not known: `dense` is not in this sweep." in more


def test_the_answer_says_what_cannot_be_told_apart(tmp_path: Path) -> None:
    rows = [{**row, "validation_images": 400} for row in SMALL]
    _, more = answer(result_of(tmp_path, rows))
    assert "Too close to tell apart by 400 validation images: random_channels and" in more
    assert "control" not in more


def test_a_method_that_was_tried_far_below_the_best_ones_cost_is_not_compared_with_it(
    tmp_path: Path,
) -> None:
    rows = [row for row in SMALL if row["val_accuracy"] != 0.86]  # random_channels at a half
    headline, more = answer(result_of(tmp_path, [{**r, "validation_images": 400} for r in rows]))
    assert headline.startswith("l1_filter is the most accurate")
    assert more.endswith(
        "Too close to tell apart by 400 validation images: vanilla. "
        "Not compared, as they were tried at far lower cost only: random_channels (20 %)."
    )


def test_the_answer_says_when_the_control_is_not_beaten(tmp_path: Path) -> None:
    rows = [*SMALL, trial("random_channels", 0.88, 0.4)]
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.startswith("random_channels is the most accurate")
    assert "random_channels needs 40.0 M" in more
    assert "validation images: l1_filter." in more and "no method is more accurate here" in more


def test_the_answer_counts_cells_where_there_are_several(tmp_path: Path) -> None:
    rows = [{**row, "cell": f"depth={depth}"} for row in SMALL for depth in (4, 8, 12)]
    rows.append(trial("vanilla", 0.89, 0.5, cell="depth=8"))
    result = result_of(tmp_path, rows)
    headline, more = answer(result)
    assert headline.endswith("l1_filter in 2 and vanilla in 1 of 3 settings.")
    assert more.startswith("The best of all is vanilla at depth=8 with 50.0 M multiplications")
    _, *lines, command = last_lines(result)
    assert [line.split(",")[0].strip() for line in lines] == ["depth=4", "depth=8", "depth=12"]
    assert "--trial vanilla-027" in command


def test_networks_of_several_data_sets_are_not_ranked(tmp_path: Path) -> None:
    rows = [{**row, "cell": f"name={name}", "dataset": name} for row in SMALL for name in "ab"]
    assert answer(result_of(tmp_path, rows))[1] == (
        "Networks of different data sets are not compared with each other."
    )


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ([], "No trial completed, so there is no frontier."),
        ([failed("l1_filter", "OSError: x")], "No trial completed, so there is no frontier."),
        (
            [trial("l1_filter", 0.8, 0.8)],
            "No method comes to 75 % of the dense network's multiplications or less.",
        ),
    ],
)
def test_the_answer_says_when_there_is_none(
    tmp_path: Path, rows: list[dict[str, Any]], headline: str
) -> None:
    result = result_of(tmp_path, rows)
    assert answer(result) == (headline, "")
    assert last_lines(result) == [headline]


SEEDS = [  # at half the cost l1_filter's mean is ahead; random_channels has the luckiest seed
    *(trial("l1_filter", value, 0.4, seed=seed) for seed, value in enumerate((0.80, 0.82, 0.84))),
    *(trial("l1_filter", 0.70, 0.2, seed=seed) for seed in range(3)),
    *(trial("vanilla", value, 0.5, seed=seed) for seed, value in enumerate((0.70, 0.72, 0.74))),
    *(trial("rnp", value, 0.3, seed=seed) for seed, value in enumerate((0.60, 0.90, 0.78))),
    trial("magnitude", 0.95, 0.5, seed=1),
    trial("magnitude", 0.95, 0.9, seed=2),
]


def of_half(result: SweepResult) -> list[Decision]:
    return headline_decisions(decisions(result), result.sweep)


def test_of_several_seeds_the_answer_is_of_means_and_not_of_the_luckiest(tmp_path: Path) -> None:
    dense = [trial("dense", 0.9, 1.0, seed=seed) for seed in range(3)]
    headline, more = answer(result_of(tmp_path, [*SEEDS, *dense]))
    assert headline == (
        "l1_filter is the most accurate at half of the dense network's multiplications: validation "
        "accuracy 0.820 ± 0.020, dense 0.900 ± 0.000."
    )
    assert more == (
        "Accuracies are means of 3 seeds. The dense network was fine-tuned as long. l1_filter "
        "needs on average 40.0 M multiplications, 40 % of dense, and 0.50 times the dense latency. "
        "Each seed counts with its most accurate trial within the budget. Too close to tell apart "
        "by 3 seeds and 10,000 validation images: rnp. Not compared, as only some seeds have a "
        "trial within the budget: magnitude."
    )


def test_of_several_seeds_the_tables_have_means_with_their_number(tmp_path: Path) -> None:
    tested = [
        {**row, "test_accuracy": row["val_accuracy"] - 0.01, "train_accuracy": 0.99}
        for row in (*SEEDS, *(trial("dense", 0.9, 1.0, seed=seed) for seed in range(3)))
    ]
    result = result_of(tmp_path, tested)
    assert "On test images these reach 0.810 ± 0.020" in answer(result)[1]
    (_, value, detail), (title, dense, _), *_ = key_figures(result, of_half(result))
    assert (value, detail) == ("0.820", "l1_filter, 40.0 M, mean of 3 seeds")
    assert (title, dense) == ("Dense network, validation", "0.900")
    table = methods_at_budget_table(result, of_half(result))
    records = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    rows = {record["method"]: record for record in records}
    assert set(rows) == {"vanilla", "l1_filter", "rnp"}
    assert rows["vanilla"]["accuracy"] == "0.720 ± 0.020"
    assert rows["vanilla"]["dense"] == "0.900 ± 0.000"
    assert rows["vanilla"]["on test images"] == "0.710 ± 0.020"
    assert rows["vanilla"]["on training images"] == "0.990 ± 0.000"
    assert rows["vanilla"]["seeds"] == "3"


def test_without_a_method_at_any_budget_in_every_seed_there_is_no_answer(tmp_path: Path) -> None:
    rows = [row for row in SEEDS if row["method"] == "magnitude"]
    headline = "No method comes to 75 % of the dense network's multiplications or less."
    assert answer(result_of(tmp_path, rows)) == (headline, "")
