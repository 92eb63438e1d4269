"""What a report says a sweep found, in its first sentences."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.summary.answer import answer
from orchestrator.report.summary.key_figures import key_figures
from orchestrator.report.tables.trials import depth_table
from tests.report_rows import SMALL, failed, result_of, trial


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


def test_a_method_that_was_tried_far_below_the_best_ones_cost_is_not_compared_with_it(
    tmp_path: Path,
) -> None:
    rows = [row for row in SMALL if row["val_accuracy"] != 0.86]  # random_channels at a half
    headline, more = answer(result_of(tmp_path, [{**r, "validation_images": 400} for r in rows]))
    assert headline.startswith("l1_filter is the most accurate")
    assert more.endswith(
        "Too close to it for 400 validation images to tell apart: vanilla. "
        "Tried at far lower cost only, and not compared here: random_channels (20 %)."
    )


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
    _, value, detail = key_figures(result)[0]
    assert (value, detail) == ("0.820", "l1_filter, 40.0 M, mean of 3 seeds")
    table = depth_table(result)
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
