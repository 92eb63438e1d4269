"""The chart of a sweep's own cascades, beside these networks alone."""

from pathlib import Path

import pytest

from orchestrator.analysis.cascade_decision import OwnCascades
from orchestrator.palette import CSS, method_marks
from orchestrator.report.charts.cascades import ALONE, CASCADE, cascade_charts
from orchestrator.report.page import write_report
from tests.knowing_networks import knowing, rows_of, swept, write
from tests.report_rows import SMALL, page_without_scripts, result_of, run_folder


def test_networks_alone_and_cascades_are_drawn_as_they_do_on_the_same_half(tmp_path: Path) -> None:
    networks = knowing(1000, 5)
    result = swept(tmp_path, networks)
    shown = OwnCascades(result).shown()
    (chart,) = cascade_charts(result, shown).values()
    values = chart["data"]["values"]
    alone = [each for each in values if each["kind"] == ALONE]
    assert [each["cost"] for each in alone] == pytest.approx((networks.costs / 1e6).tolist())
    for each, logits in zip(alone, networks.logits, strict=True):
        right = (logits.argmax(axis=1) == networks.labels)[~networks.chooses]
        assert each["accuracy"] == pytest.approx(right.mean())
    ((_, found),) = shown
    drawn = [each for each in values if each["kind"] == CASCADE]
    assert [each["accuracy"] for each in drawn] == pytest.approx([own.accuracy for own in found])
    assert [each["cost"] for each in drawn] == pytest.approx(
        [own.multiplications / 1e6 for own in found]
    )
    assert all(each["unbeaten"] for each in drawn)
    lines = [each for each in chart["layer"] if each["mark"]["type"] == "line"]
    assert [line["mark"]["color"] for line in lines] == [
        CSS.muted, method_marks(["cascade"], CSS)["cascade"][0],
    ]  # fmt: skip


def test_a_line_joins_no_networks_of_two_seeds_and_cells_have_charts_of_their_own(
    tmp_path: Path,
) -> None:
    rows = []
    for number, (cell, seed) in enumerate((c, s) for c in ("depth=4", "depth=8") for s in (0, 1)):
        networks = knowing(300, 3, seed=number)
        names = [f"{number}-{place}" for place in range(3)]
        write(tmp_path, networks, names)
        own = rows_of(networks, cell=cell, seed=seed)
        rows += [{**row, "trial_id": name} for row, name in zip(own, names, strict=True)]
    result = result_of(tmp_path, rows)
    charts = cascade_charts(result, OwnCascades(result).shown())
    assert list(charts) == ["depth=4", "depth=8"]
    for place, chart in enumerate(charts.values()):
        for layer in chart["layer"]:
            if layer["mark"]["type"] == "line":
                assert layer["encoding"]["detail"]["field"] == "of"
        for value in chart["data"]["values"]:
            if value["kind"] == ALONE:
                assert int(value["networks"][0]) == 2 * place + value["of"]
    write_report(tmp_path)
    said = "Networks judged on the same images share a frontier."
    assert said in page_without_scripts(tmp_path) and said in (tmp_path / "report.md").read_text()


def test_the_report_has_the_section_only_where_there_are_cascades(tmp_path: Path) -> None:
    write_report(run_folder(tmp_path / "without", SMALL))
    assert "Cascades of these networks" not in page_without_scripts(tmp_path / "without")
    assert "Cascades of" not in (tmp_path / "without" / "report.md").read_text()
    swept(tmp_path / "with", knowing(4000, 6))
    write_report(tmp_path / "with")
    page, text = (
        page_without_scripts(tmp_path / "with"),
        (tmp_path / "with" / "report.md").read_text(),
    )
    for said in (page, text):
        assert "Cascades of these networks" in said and "at random" in said
        assert "share a frontier" not in said  # there is one
        assert "A cascade of these networks (" in said and "which is confirmed first" in said
    assert 'href="#section-' in page and page.count('class="chart"') >= 2
