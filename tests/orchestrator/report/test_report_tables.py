"""The tables of a report hold what trials.csv does."""

import math
from pathlib import Path

import pytest

from orchestrator.analysis.pareto import frontier
from orchestrator.analysis.uncertainty import t_interval
from orchestrator.report.summary.cautions import cautions, failures
from orchestrator.report.tables.methods import (
    comparison_table,
    effort_table,
    pairs_by_seed_table,
    pairs_table,
)
from orchestrator.report.tables.trials import frontier_table, repeated_table
from tests.report_rows import (
    METHODS,
    SMALL,
    failed,
    result_of,
    trial,
)

AS_MANY_TRIES = [row for row in SMALL if row["val_accuracy"] != 0.60]


def test_the_comparison_has_hand_worked_figures_and_marks_the_best(tmp_path: Path) -> None:
    table = comparison_table(result_of(tmp_path, AS_MANY_TRIES))
    l1 = 0.25 * 0.65 + 0.55 * 0.78  # the staircase from 0.2 to 0.45 and from there to 1
    assert table.header == (
        "method",
        "hypervolume",
        "at 25 %",
        "at 50 %",
        "completed",
    )
    line = 0.75 + 0.13 * 0.05 / 0.25
    assert table.rows == [
        ("dense", "outside (multiplications)", "–", "–", "1 of 1"),  # noqa: RUF001
        ("vanilla", "0.550", "0.800", "0.850", "2 of 2"),
        ("random_channels", "0.560", "–", "0.860", "2 of 2"),  # noqa: RUF001
        ("l1_filter", f"{l1:.3f}", f"{line:.3f}", "–", "2 of 2"),  # noqa: RUF001
        ("magnitude", "outside (multiplications)", "–", "–", "1 of 1"),  # noqa: RUF001
    ]
    assert table.best_rows == {3}


def test_where_a_method_shares_no_cost_with_the_others_none_stands_out_as_best(
    tmp_path: Path,
) -> None:
    table = comparison_table(result_of(tmp_path, SMALL))
    place = table.header.index("hypervolume")
    # Of vanilla and random_channels at 50 %, where l1_filter was not tried.
    assert [row[place] for row in table.rows[1:4]] == ["0.375", "0.380", "–"]  # noqa: RUF001
    assert table.best_rows == set()


@pytest.mark.parametrize("n_seeds", [2, 4, 5])
def test_of_few_seeds_each_one_is_shown_beside_the_interval(tmp_path: Path, n_seeds: int) -> None:
    rows = [
        trial(method, accuracy + 0.01 * seed, 0.5, seed=seed)
        for method, accuracy in (("vanilla", 0.7), ("l1_filter", 0.8))
        for seed in range(n_seeds)
    ]
    result = result_of(tmp_path, rows)
    table, pairs, repeated = (
        [dict(zip(each.header, row, strict=True)) for row in each.rows]
        for each in (comparison_table(result), pairs_table(result), repeated_table(result))
    )
    by_seed = pairs_by_seed_table(result)
    assert pairs[1]["vanilla"] == "+10.0 (+10.0 to +10.0)" and pairs[0]["vanilla"] == "–"  # noqa: RUF001
    low, high = t_interval([0.3 + 0.005 * seed for seed in range(n_seeds)])
    assert table[0]["95 % interval"] == f"{low:.3f} to {high:.3f}"
    if n_seeds < 5:
        volumes = ", ".join(f"{0.3 + 0.005 * seed:.3f}" for seed in range(n_seeds))
        accuracies = ", ".join(f"{0.7 + 0.01 * seed:.3f}" for seed in range(n_seeds))
        assert table[0]["each seed"] == volumes and repeated[0]["each seed"] == accuracies
        differences = ", ".join(["-10.0"] * n_seeds)
        assert by_seed.rows == [("vanilla", "l1_filter", "-10.0", "-10.0 to -10.0", differences)]
    else:
        assert "each seed" not in table[0] and "each seed" not in repeated[0]
        assert by_seed.rows == []


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
        "latency over dense",
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
        "0.30",
        "l1_filter-005",
    )


def test_effort_is_summed_per_method(tmp_path: Path) -> None:
    rows = [*SMALL, failed("l1_filter", "OSError: x", epochs_spent=2, duration_s=60.0)]
    table = effort_table(result_of(tmp_path, rows))
    assert table.rows[3] == ("l1_filter", "4", "3", "5", "2 to 5", "2 min 30 s", "30 s")


@pytest.mark.parametrize(
    ("rnps", "tries"),
    [
        (1, ""),
        (2, "tries: rnp 3 and each of the other methods 2."),
    ],
)
def test_unequal_tries_are_said_and_what_most_had_is_said_once(
    tmp_path: Path, rnps: int, tries: str
) -> None:
    methods = ("vanilla", "l1_filter", "thinet", "rnp")
    tried = ("dense", *methods, *methods, *["rnp"] * (rnps - 1))  # dense has nothing to be tried
    rows = [trial(method, 0.8, 0.5) for method in tried]
    said = "\n".join(cautions(result_of(tmp_path, rows, methods=("dense", *methods))))
    assert tries in said and ("number of tries" in said) == bool(tries)


def test_unequal_epochs_and_passes_beside_them_are_said(tmp_path: Path) -> None:
    rows = [*SMALL, trial("rnp", 0.8, 0.5, fine_tuning_epochs=7, q_learning_epochs=12.34)]
    result = result_of(tmp_path, rows, methods=(*METHODS, "rnp"))
    said = "\n".join(cautions(result))
    assert "not given the same fine-tuning epochs: rnp 7 and each of the other methods 5." in said
    assert (
        "for Q-learning, in epochs of forward passes (median trial): rnp 12.3." in said
        and "for rewards" not in said
    )
    table = effort_table(result)
    place = table.header.index("Q-learning passes")
    assert [row[place] for row in table.rows] == ["", "", "", "", "", "12.3"]
    assert "reward passes" not in table.header


def test_pairs_are_a_table_of_the_row_against_the_column(tmp_path: Path) -> None:
    table = pairs_table(result_of(tmp_path, SMALL))
    assert table.header[0] == "ahead of →" and table.header[-1] == "magnitude"
    cells = {
        (row[0], other): said
        for row in table.rows
        for other, said in zip(table.header[1:], row[1:], strict=True)
    }
    assert cells["dense", "l1_filter"] == "", "the one was tried at 100 % alone, the other not"
    # At 20 %, the one cost that both tried: 0.75 against 0.70.
    assert cells["l1_filter", "random_channels"] == "+5.0"
    assert cells["random_channels", "l1_filter"] == "-5.0"
    # At 25 %, where l1_filter's line from 0.75 to 0.88 has come a fifth of the way.
    assert cells["vanilla", "l1_filter"] == f"{100 * (0.80 - 0.75 - 0.13 / 5):+.1f}"
    assert cells["dense", "magnitude"] == "+0.5"
    assert cells["dense", "dense"] == "–"  # noqa: RUF001


def test_a_pair_that_some_seeds_alone_share_says_how_many(tmp_path: Path) -> None:
    rows = [trial("vanilla", 0.7, 0.5, seed=seed) for seed in range(3)]
    rows += [trial("l1_filter", 0.7 + 0.01 * seed, 0.5, seed=seed) for seed in range(2)]
    rows.append(trial("thinet", 0.7, 0.5, seed=2))
    result = result_of(tmp_path, rows, methods=("vanilla", "l1_filter", "thinet"))
    header, (first, *_) = pairs_table(result)[:2]
    said = dict(zip(header, first, strict=True))
    assert said["l1_filter"] == "-0.5 (-6.9 to +5.9; 2 of 3 seeds)"
    assert said["thinet"] == "+0.0 (1 of 3 seeds)"


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
