"""Budgets that were missed are flagged wherever a network's cost is read."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.analysis.answer import last_lines
from orchestrator.analysis.asked_budget import is_missed, missed_budgets
from orchestrator.analysis.decision import decisions
from orchestrator.console.progress import Progress
from orchestrator.report.summary.cautions import cautions
from orchestrator.report.tables.answers import answers_table
from orchestrator.report.tables.trials import frontier_table
from tests.report_rows import DENSE, result_of, trial

ASKED = "rnp.keep_multiplications"


@pytest.mark.parametrize(
    ("share", "missed"),
    [(0.70, False), (0.7049, False), (0.7051, True), (0.66, False), (0.64, True), (0.5, True)],
)
def test_a_budget_is_missed_above_it_as_written_or_far_below_it(share: float, missed: bool) -> None:
    assert is_missed(share, 0.7) == missed


def test_a_budget_that_reads_as_it_came_out_is_met() -> None:
    assert not is_missed(0.3305, 0.329), "33 % of 33 %"


def test_a_missed_budget_is_said_in_the_tables_the_cautions_and_the_last_lines(
    tmp_path: Path,
) -> None:
    rows = [
        trial("rnp", 0.8, 0.48, **{ASKED: 0.7}),
        trial("rnp", 0.79, 0.52, seed=1, **{ASKED: 0.7}),
        trial("vanilla", 0.7, 0.3, **{"vanilla.keep_multiplications": 0.3}),
    ]
    result = result_of(tmp_path, rows)
    said = "rnp asked for 70 % came to 50 %"
    assert missed_budgets(result.trials) == [said]
    assert f"Budgets missed: {said}." in last_lines(result)
    assert any(said in each for each in cautions(result))
    table = frontier_table(result, result.frontier)
    places = table.header.index("of dense")
    assert [row[places] for row in table.rows] == ["30 %", "48 % (asked for 70 %)"]
    answers = answers_table(result, decisions(result))
    shares = {row[answers.header.index("of dense")] for row in answers.rows}
    assert shares == {"50 % (asked for 70 %)", "30 %"}


def test_of_confirmed_networks_the_share_on_test_images_counts(tmp_path: Path) -> None:
    asked = trial("rnp", 0.8, 0.7, **{ASKED: 0.7})
    again = {"phase": "confirmation", "confirms": "rnp-000", "seed": 1, "test_accuracy": 0.8}
    again |= {"trial_id": "rnp-000-c1", "test_multiplications": 0.8 * DENSE}
    rows = [asked, {**asked, **again}]
    assert missed_budgets(result_of(tmp_path, rows).trials) == ["rnp asked for 70 % came to 80 %"]


def test_the_line_of_a_trial_that_ends_flags_it_too() -> None:
    log = Console(file=io.StringIO(), width=200)
    with Progress(1, log) as progress:
        progress.trial_done(trial("rnp", 0.8, 0.5, trial_id="rnp-000", **{ASKED: 0.7}))
    assert isinstance(log.file, io.StringIO)
    assert "(50 % of dense, asked for 70 %)" in log.file.getvalue()
