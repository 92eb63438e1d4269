"""What a report says of confirmations, and of several run folders together."""

import csv
import json
import re
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis.answer import answer
from orchestrator.analysis.decision import decisions, headline_decisions
from orchestrator.analysis.pareto import frontier
from orchestrator.analysis.seed_means import confirmed
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.commands.report import main
from orchestrator.report.page import write_report
from orchestrator.report.summary.cautions import cautions
from orchestrator.report.tables.answers import methods_at_budget_table
from orchestrator.report.tables.trials import confirmed_table
from tests.report_rows import (
    CONFIRMED,
    METHODS,
    SMALL,
    again,
    drawn_trials,
    result_of,
    run_folder,
)
from tests.trial_points import trials

Rows = list[dict[str, Any]]


def test_the_answer_is_of_test_images_and_validation_images_choose_of_a_methods_points(
    tmp_path: Path,
) -> None:
    headline, more = answer(result_of(tmp_path, CONFIRMED))
    assert headline == (
        "vanilla is the most accurate at half of the dense network's multiplications: test "
        "accuracy 0.850 ± 0.010, dense 0.890 ± 0.010."
    )
    assert more == (
        "It was confirmed with 3 fresh seeds. The dense network was fine-tuned as long. "
        "vanilla needs on average 50.0 M multiplications, 50 % of dense, and 0.60 times the "
        "dense latency. The control, random_channels, is 6.0 points behind."
    )


def test_a_point_that_costs_more_than_half_with_fresh_seeds_is_not_the_best_at_half(
    tmp_path: Path,
) -> None:
    dearer = {"multiplications": 73e6, "test_multiplications": 73e6}
    rows = [{**row, **dearer} if row.get("confirms") == "vanilla-002" else row for row in CONFIRMED]
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.startswith("l1_filter is the most accurate at half")
    assert "45 % of dense" in more


def test_points_that_the_seeds_or_the_images_cannot_tell_apart_are_said(tmp_path: Path) -> None:
    few = [{**row, "test_images": 400} if row.get("confirms") else row for row in CONFIRMED]
    _, more = answer(result_of(tmp_path / "images", few))
    assert "by 3 fresh seeds and 400 test images: l1_filter." in more
    noisy = [row for row in CONFIRMED if row.get("confirms") != "l1_filter-006"]
    noisy += [again(6, seed, value) for seed, value in ((1, 0.72), (2, 0.92), (3, 0.82))]
    _, more = answer(result_of(tmp_path / "seeds", noisy))
    assert "10,000 test images: l1_filter." in more


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    rows = [*SMALL, again(6, 1, 0.83), again(2, 1, 0.80)]
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.endswith("test accuracy 0.830.")
    assert more.startswith("It was confirmed with one fresh seed.")


def test_the_answer_counts_cells_where_several_were_confirmed(tmp_path: Path) -> None:
    cells = ["depth=4", "depth=8"]
    rows = [
        {**row, "cell": cell, "trial_id": f"{cell}/{place}", "confirms": confirms}
        for cell in cells
        for place, row in enumerate(CONFIRMED)
        for confirms in [f"{cell}/{int(str(row['confirms'])[-3:])}" if row.get("confirms") else ""]
    ]
    headline, more = answer(result_of(tmp_path, rows))
    assert headline.endswith("vanilla in 2 of 2 settings, confirmed with 3 fresh seeds.")
    assert "vanilla at depth=4 with 50.0 M multiplications: test accuracy 0.850 ±" in more


def test_the_caution_about_one_seed_asks_for_confirmation_and_goes_with_it(tmp_path: Path) -> None:
    assert "confirm: {seeds: 3}" in "\n".join(cautions(result_of(tmp_path / "a", SMALL)))
    assert "One seed" not in "\n".join(cautions(result_of(tmp_path / "b", CONFIRMED)))


def test_confirmations_are_on_no_frontier(tmp_path: Path) -> None:
    before, after = result_of(tmp_path / "a", SMALL), result_of(tmp_path / "b", CONFIRMED)
    points = [frontier(each.trials, each.objectives)["trial_id"] for each in (before, after)]
    assert list(points[0]) == list(points[1])


def test_the_table_has_mean_deviation_and_n_beside_the_searchs_figure(tmp_path: Path) -> None:
    result = result_of(tmp_path, CONFIRMED)
    table = confirmed_table(result)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    by_trial = {row["trial"]: row for row in rows}
    assert set(by_trial) == {
        "dense-000", "vanilla-002", "random_channels-004", "l1_filter-005", "l1_filter-006",
    }  # fmt: skip
    l1 = by_trial["l1_filter-006"]
    assert (l1["test"], l1["n"], l1["search's validation"]) == ("0.820 ± 0.010", "3", "0.880")
    assert (by_trial["l1_filter-005"]["test"], by_trial["l1_filter-005"]["n"]) == ("0.990", "1")


def test_accuracy_and_cost_of_every_method_at_half_are_of_its_confirmation(tmp_path: Path) -> None:
    dearer = {"multiplications": 46e6, "test_multiplications": 48e6, "train_accuracy": 0.95}
    rows = [
        {**row, **dearer} if row.get("confirms") == "l1_filter-006" else row for row in CONFIRMED
    ]
    result = result_of(tmp_path, rows)
    table = methods_at_budget_table(result, headline_decisions(decisions(result), result.sweep))
    found = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["trial"] for row in found] == [
        "vanilla-002", "random_channels-004", "l1_filter-006",
    ]  # fmt: skip
    assert found[2]["accuracy"] == "0.820 ± 0.010" and found[2]["dense"] == "0.890 ± 0.010"
    assert (found[2]["multiplications"], found[2]["of dense"]) == ("48.0 M", "48 %")
    assert found[2]["on training images"] == "0.950 ± 0.000"
    assert table.best_rows == {0}


def markdown_tables(folder: Path) -> list[list[dict[str, str]]]:
    """Every table of report.md, as rows of header -> cell."""
    tables: list[list[dict[str, str]]] = []
    blocks = re.split(r"\n(?!\|)", (folder / "report.md").read_text())
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if len(lines) > 2:
            cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
            tables.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return tables


def test_every_figure_of_a_small_report_is_found_again_from_the_rows_alone(tmp_path: Path) -> None:
    """With csv and statistics, and none of the code under test."""
    # Of every pruning method two tries.
    folder = run_folder(tmp_path, [row for row in CONFIRMED if row["val_accuracy"] != 0.60])
    write_report(folder)
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    search = [row for row in rows if row["phase"] == "search"]
    by_id = {row["trial_id"]: row for row in search}

    def number(row: dict[str, str], name: str) -> float:
        return float(row[name] or "nan")

    def beats(one: dict[str, str], other: dict[str, str]) -> bool:
        better = number(one, "val_accuracy") - number(other, "val_accuracy")
        cheaper = number(other, "multiplications") - number(one, "multiplications")
        return better >= 0 and cheaper >= 0 and (better > 0 or cheaper > 0)

    def best(method: str, percent: float) -> float | None:
        own = [row for row in search if row["method"] == method]
        paid = [row for row in own if number(row, "multiplications") <= 1e6 * percent]
        return max((number(row, "val_accuracy") for row in paid), default=None)

    def read(method: str, percent: float) -> float | None:
        """From the line between the nearest on either side; each of these methods rises."""
        own = sorted(
            (number(row, "multiplications") / 1e6, number(row, "val_accuracy"))
            for row in search
            if row["method"] == method
        )
        for (low, worse), (high, better) in pairwise([*own, own[-1]]):
            if low <= percent <= high and high - low <= 25:
                return worse + (better - worse) * (percent - low) / ((high - low) or 1)
        return next((value for cost, value in own if cost == percent), None)

    answers, confirmations, overall, comparison, pairs, depths, effort = markdown_tables(folder)
    assert [(said["at most"], said["trial"]) for said in answers] == [
        ("75 %", "vanilla-002"), ("50 %", "vanilla-002"), ("25 %", "l1_filter-005"),
    ]  # fmt: skip
    for said in confirmations:
        tests = [
            number(row, "test_accuracy")
            for row in rows
            if row["confirms"] == said["trial"] and row["test_accuracy"]
        ]
        deviation = f" ± {statistics.stdev(tests):.3f}" if len(tests) > 1 else ""
        assert said["test"] == f"{statistics.mean(tests):.3f}{deviation}"
        assert said["n"] == str(len(tests))
        first = by_id[said["trial"]]
        assert said["search's validation"] == f"{number(first, 'val_accuracy'):.3f}"
        assert said["of dense"] == f"{number(first, 'multiplications') / 1e6:.0f} %"
    unbeaten = {r["trial_id"] for r in search if not any(beats(other, r) for other in search)}
    assert {said["trial"] for said in overall} == unbeaten
    for said in overall:
        row = by_id[said["trial"]]
        assert said["validation"] == f"{number(row, 'val_accuracy'):.3f}"
        assert said["of dense"] == f"{number(row, 'multiplications') / 1e6:.0f} %"
    for said in comparison:
        for percent in (25, 50):
            found = read(said["method"], percent)
            assert said[f"at {percent} %"] == ("–" if found is None else f"{found:.3f}")  # noqa: RUF001
        assert read(said["method"], 75) is None and "at 75 %" not in said
        columns = [best(said["method"], 100 * (cell + 0.5) / 1000) for cell in range(1000)]
        area = sum(value - 0.1 for value in columns if value is not None) / 1000
        outside = said["method"] in ("dense", "magnitude")
        expected = "outside (multiplications)" if outside else pytest.approx(area, abs=1e-3)
        assert (said["hypervolume"] if outside else float(said["hypervolume"])) == expected
    for said in pairs:
        for other in METHODS:
            if other == said["ahead of →"] or not said[other]:
                continue
            tried = [round(number(row, "multiplications") / 1e6) for row in search]
            both = [(read(said["ahead of →"], p), read(other, p)) for p in sorted(set(tried))]
            shared = [own - its for own, its in both if own is not None and its is not None]
            assert min(shared) - 5e-4 <= float(said[other]) / 100 <= max(shared) + 5e-4
    assert [said["trial"] for said in depths] == [
        "vanilla-002", "random_channels-004", "l1_filter-006",
    ]  # fmt: skip
    for said in effort:
        own = [row for row in search if row["method"] == said["method"]]
        assert said["tries"] == str(len(own)) and said["a trial"] == "30 s"


def test_several_run_folders_make_one_report_beside_them(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "A", SMALL[:5], name="A")
    second = run_folder(tmp_path / "B", SMALL[5:], name="B")
    assert main([str(first), str(second)]) == 0
    together = tmp_path / "A+B"
    alone = run_folder(tmp_path / "C", SMALL)
    write_report(alone)
    drawn = [
        sorted(
            (r["method"], r["val_accuracy"], r["on_multiplications"]) for r in drawn_trials(each)
        )
        for each in (together, alone)
    ]
    assert drawn[0] == drawn[1]
    names = [record["trial_id"] for record in drawn_trials(together)]
    assert len(set(names)) == len(names) and all(name[:2] in ("A/", "B/") for name in names)
    assert not (first / "report.html").exists()


def test_sweeps_of_other_settings_are_other_cells(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / name, SMALL, name=name) for name in "AB")
    text = (second / "sweep.yaml").read_text()
    (second / "sweep.yaml").write_text(text.replace("epochs: 20", "epochs: 40"))
    assert SweepResult.read(first, second).cells == ["A: all", "B: all"]


def test_sweeps_of_other_dense_networks_are_other_cells(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "A", SMALL, name="A")
    other = [{**row, "dense_val_accuracy": 0.91} for row in SMALL]
    result = SweepResult.read(first, run_folder(tmp_path / "B", other, name="B"))
    assert result.cells == ["A: all", "B: all"]
    assert "each has panels of its own" in "\n".join(cautions(result))
    judged_on_a_part = [{**row, "reward_images": 5000} for row in other]
    result = SweepResult.read(first, run_folder(tmp_path / "C", judged_on_a_part, name="C"))
    assert result.cells == ["all"]


def test_other_data_share_no_axis_and_no_frontier(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "A", SMALL, name="A")
    faces = [
        {**row, "dataset": "faces", "val_accuracy": row["val_accuracy"] / 2}
        | {"dense_val_accuracy": 0.45}
        for row in SMALL
    ]
    second = run_folder(tmp_path / "B", faces, name="B")
    text = (second / "sweep.yaml").read_text()
    (second / "sweep.yaml").write_text(text.replace("name: digits", "name: faces"))
    together = write_report(first, second)
    page = (together / "report.html").read_text()
    assert "Accuracies on different data are not compared" in page
    assert "All settings together" not in page
    figures = re.search(r"^const figures = (.*);$", page, re.M)
    assert figures is not None
    tops = {
        layer["encoding"]["y"]["scale"]["domain"][1]
        for chart in json.loads(figures[1])
        for layer in chart["layer"]
        if layer["encoding"].get("x", {}).get("field") == "multiplications"
    }
    assert len(tops) == 2 and min(tops) < 0.5 < 0.9 < max(tops)
    for record in drawn_trials(together):
        own = [r for r in drawn_trials(together) if r["data"] == record["data"]]
        beaten = any(
            r["val_accuracy"] >= record["val_accuracy"]
            and r["multiplications"] <= record["multiplications"]
            and (r["val_accuracy"], r["multiplications"])
            != (record["val_accuracy"], record["multiplications"])
            for r in own
        )
        assert record["overall_multiplications"] != beaten


def test_budgets_that_several_sweeps_ask_for_are_all_answered(tmp_path: Path) -> None:
    folders = []
    for name, budget in (("A", 0.3), ("B", 0.6)):
        folder = run_folder(tmp_path / name, SMALL, name=name)
        sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
        sweep["methods"]["vanilla"] = {"keep_multiplications": budget}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        folders.append(folder)
    found = decisions(SweepResult.read(*folders))
    assert [each.budget for each in found] == [0.75, 0.6, 0.5, 0.3, 0.25]


def test_sweeps_of_other_objectives_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_folder(tmp_path / "A", SMALL, name="A")
    second = run_folder(tmp_path / "B", SMALL, name="B", objectives=("latency_ms",))
    assert main([str(first), str(second)]) == 2
    assert (
        "same objectives, got A: val_accuracy, multiplications; B: val" in capsys.readouterr().err
    )
    assert main([str(first), str(tmp_path / "none")]) == 2
    assert "none is no run folder: it has no sweep.yaml" in capsys.readouterr().err


def test_confirmed_of_no_confirmation_is_empty_with_its_columns() -> None:
    found = confirmed(trials([(0.5, 10)]))
    assert found.empty and "test_deviation" in found.columns


def test_a_report_with_confirmations_shows_them_first(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, CONFIRMED)
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert page.index(">Confirmed</h2>") < page.index(">What the search saw</h2>")
    assert "by the confirmations alone" in page
