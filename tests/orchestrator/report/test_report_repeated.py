"""What a report says of options that several seeds ran."""

import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.analysis.seed_means import all_repeated, repeated
from orchestrator.report.charts.seed_means import means_below_axis, repeated_charts
from orchestrator.report.charts.vega_lite import picture
from orchestrator.report.page import write_report
from orchestrator.report.tables.trials import repeated_table
from tests.report_rows import SMALL, failed, result_of, run_folder, trial

Rows = list[dict[str, Any]]
ACCURACIES = {0.25: (0.80, 0.82, 0.81), 0.5: (0.85, 0.85, 0.88), 0.75: (0.86, 0.80, 0.83)}
TESTED = {0.25: (0.79, 0.80, 0.78), 0.5: (0.84, None, 0.86), 0.75: (None, None, None)}


def of_three_seeds(**columns: Any) -> Rows:
    """vanilla at three keep ratios; each seed's networks cost a little more than the last's."""
    return [
        trial(
            "vanilla", accuracies[seed], share + 0.01 * seed, seed=seed,
            test_accuracy=TESTED[share][seed], train_accuracy=0.9, **columns,
            **{"vanilla.keep_ratio": share, "vanilla.layer": None},
        )
        for share, accuracies in ACCURACIES.items()
        for seed in range(3)
    ]  # fmt: skip


def test_a_mean_and_a_deviation_for_each_option_over_its_seeds(tmp_path: Path) -> None:
    points = repeated(result_of(tmp_path, of_three_seeds()).trials)
    assert list(points["trial_id"]) == ["vanilla-000", "vanilla-003", "vanilla-006"]
    for (_, point), (share, values) in zip(points.iterrows(), ACCURACIES.items(), strict=True):
        assert point["n"] == 3
        assert point["val_accuracy"] == pytest.approx(statistics.mean(values))
        assert point["val_deviation"] == pytest.approx(statistics.stdev(values))
        assert point["share"] == pytest.approx(share + 0.01)
        assert point["multiplications"] == pytest.approx(1e8 * (share + 0.01))
        tested = [value for value in TESTED[share] if value is not None]
        assert point["tested"] == len(tested)
        if tested:
            assert point["test_accuracy"] == pytest.approx(statistics.mean(tested))
        assert math.isnan(point["test_deviation"]) == (len(tested) < 2)


def test_what_one_seed_alone_completed_has_no_mean(tmp_path: Path) -> None:
    rows = [*SMALL, failed("vanilla", "OSError: x", seed=1), trial("vanilla", 0.8, 0.3, seed=1)]
    trials = result_of(tmp_path, rows).trials
    assert repeated(trials).empty and not all_repeated(trials, repeated(trials), "multiplications")


def test_settings_of_other_cells_options_and_confirmations_are_kept_apart(tmp_path: Path) -> None:
    rows = of_three_seeds()
    rows[1]["cell"] = "depth=8"
    rows[3]["vanilla.layer"] = 2
    again = {"phase": "confirmation", "confirms": "vanilla-006", "seed": 7}
    trials = result_of(tmp_path, [*rows, {**rows[6], **again, "trial_id": "vanilla-006-c7"}]).trials
    points = repeated(trials)
    assert dict(zip(points["trial_id"], points["n"], strict=True)) == {
        "vanilla-000": 2, "vanilla-004": 2, "vanilla-006": 3,
    }  # fmt: skip
    assert not all_repeated(trials, points, "multiplications")


def test_an_option_that_one_seed_tried_twice_counts_once(tmp_path: Path) -> None:
    rows = of_three_seeds()
    trials = result_of(tmp_path, [*rows, {**rows[0], "val_accuracy": 0.2}]).trials
    points = repeated(trials)
    assert points.loc[0, "n"] == 3 and points.loc[0, "val_accuracy"] == pytest.approx(0.81)
    assert not all_repeated(trials, points, "multiplications"), "the second try is in no mean"


def test_the_table_says_of_how_many_seeds_the_test_accuracy_is(tmp_path: Path) -> None:
    result = result_of(tmp_path, [*of_three_seeds(), *of_three_seeds(cell="depth=12")])
    table = repeated_table(result)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [(row["cell"], row["settings"]) for row in rows] == [
        (cell, f"keep_ratio {share}") for cell in ("all", "depth=12") for share in ACCURACIES
    ]
    assert [row["test"] for row in rows[:3]] == [
        "0.790 ± 0.010", "0.850 ± 0.014 (2 of 3)", "–",  # noqa: RUF001
    ]  # fmt: skip
    first = rows[0]
    assert (first["validation"], first["seeds"]) == ("0.810 ± 0.010", "3")
    assert (first["multiplications"], first["of dense"]) == ("26.0 M", "26 %")


def test_a_cells_chart_has_each_mean_with_its_deviation_and_the_best_of_them(
    tmp_path: Path,
) -> None:
    result = result_of(tmp_path, of_three_seeds())
    (chart,) = repeated_charts(result, "multiplications").values()
    drawn = chart["data"]["values"]
    for value, accuracies in zip(drawn, ACCURACIES.values(), strict=True):
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert (value["low"], value["mean"], value["high"]) == pytest.approx(
            (mean - deviation, mean, mean + deviation), abs=1e-5
        )
    assert [value["unbeaten"] for value in drawn] == [True, True, False]
    assert ["beside" in value for value in drawn] == [True, False, False], "all three seeds'"


def test_panels_share_a_scale_that_holds_every_interval(tmp_path: Path) -> None:
    worse = [{**row, "val_accuracy": row["val_accuracy"] - 0.3} for row in of_three_seeds()]
    rows = [*of_three_seeds(), *({**row, "cell": "depth=8"} for row in worse)]
    result = result_of(tmp_path, rows)
    panels = repeated_charts(result, "multiplications")
    assert list(panels) == ["all", "depth=8"] and means_below_axis(panels) == 0
    alone = {"depth=8": panels["depth=8"]}
    assert picture(result, alone, "", "")["vconcat"][0]["hconcat"][0]["title"] == "depth=8"
    assert not repeated_charts(result_of(tmp_path / "none", SMALL), "multiplications")
    (row,) = picture(result, panels, "", "")["vconcat"]
    drawn = row["hconcat"]
    values = [value for panel in drawn for value in panel["data"]["values"]]
    for panel in drawn:
        for layer in panel["layer"]:
            low, high = layer["encoding"]["y"]["scale"]["domain"]
            assert low < min(v["low"] for v in values) < max(v["high"] for v in values) < high


def test_a_ruined_option_does_not_stretch_the_chart_but_is_counted(tmp_path: Path) -> None:
    ruined = [
        {**row, "val_accuracy": 0.1, "vanilla.keep_ratio": 0.8, "multiplications": 9e7}
        for row in of_three_seeds()[-3:]
    ]
    rows = of_three_seeds()
    rows[6]["val_accuracy"], rows[7]["val_accuracy"] = 0.96, 0.70  # beaten, and far apart
    result = result_of(tmp_path, [*rows, *ruined])
    charts = repeated_charts(result, "multiplications")
    assert means_below_axis(charts) == 1
    chart = charts["all"]
    low, _ = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    drawn = chart["data"]["values"]
    assert len(drawn) == 4 and drawn[3]["mean"] < 0.6 < low
    for layer in chart["layer"]:
        at_the_edge = "triangle" in layer["mark"].get("shape", "")
        inside = f">= {low}" in str(layer.get("transform"))
        assert layer["mark"].get("clip") or at_the_edge or inside
    assert not drawn[2]["unbeaten"] and low < drawn[2]["low"], "the bars of what is shown are whole"
    write_report(run_folder(tmp_path / "page", [*rows, *ruined]))
    picture = (tmp_path / "page" / "frontier.html").read_text()
    assert re.search(r"at\W+the\W+edge:\W+1\W+beyond\W+the\W+axes", picture), "in one line or two"
    assert "1 mean beyond the axes" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize("status", ["failed", "stopped_early"])
def test_means_of_the_seeds_that_are_left_make_no_picture(tmp_path: Path, status: str) -> None:
    rows = of_three_seeds()
    rows[1]["status"] = status
    result = result_of(tmp_path, rows)
    points = repeated(result.trials)
    assert list(points["n"]) == [2, 3, 3] and list(points["tried"]) == [3, 3, 3]
    assert repeated_table(result).rows[0][2] == "2 of 3"
    assert not all_repeated(result.trials, points, "multiplications")


def test_what_a_seed_lacks_has_no_mean(tmp_path: Path) -> None:
    rows = of_three_seeds()
    rows[1] |= {"dense_multiplications": None, "train_accuracy": None}
    points = repeated(result_of(tmp_path, rows).trials)
    for name in ("share", "train_accuracy"):
        assert list(points[name].isna()) == [True, False, False]


def test_a_cost_that_one_seed_lacks_has_no_mean_and_no_picture_of_means(tmp_path: Path) -> None:
    rows = of_three_seeds()
    rows[4]["latency_ms"] = None
    result = result_of(tmp_path, rows, objectives=("latency_ms",))
    points = repeated(result.trials)
    assert list(points["latency_ms"].isna()) == [False, True, False]
    assert all_repeated(result.trials, points, "multiplications")
    assert not all_repeated(result.trials, points, "latency_ms")
    write_report(tmp_path)
    assert "trials that others beat" in (tmp_path / "frontier.html").read_text()


def test_the_picture_is_of_means_where_they_stand_for_all_trials(tmp_path: Path) -> None:
    alone = trial("l1_filter", 0.5, 0.5)
    for name, rows, said in (
        ("means", of_three_seeds(), "mean and deviation of 3 seeds"),
        ("trials", [*of_three_seeds(), alone], "trials that others beat"),
    ):
        folder = run_folder(tmp_path / name, rows)
        write_report(folder)
        assert said in (folder / "frontier.html").read_text()
        with Image.open(folder / "frontier.png") as image:
            assert image.width > 1500
        for page in ("report.html", "report.md"):
            assert "Means over seeds" in (folder / page).read_text()
    single = run_folder(tmp_path / "single", SMALL)
    write_report(single)
    for page in ("report.html", "report.md"):
        assert "Means over seeds" not in (single / page).read_text()
