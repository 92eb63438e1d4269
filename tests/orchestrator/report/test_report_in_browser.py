"""The report in a real browser: light, dark, narrow, on paper, with a keyboard."""

from pathlib import Path

import pytest

from orchestrator.palette import DARK, LIGHT
from orchestrator.report.page import write_report
from orchestrator.run_folder.trial_files import write_reports
from tests.browser import ask, needs_chromium
from tests.live_page import live_page
from tests.report_rows import CONFIRMED, folder_with_images, run_folder

pytestmark = needs_chromium

LOOK = """
  const charts = [...document.querySelectorAll(".chart")];
  const style = getComputedStyle(document.body);
  const wide = [...document.querySelectorAll("body *")]
    .filter((e) => !e.closest(".scroll") && !e.closest("svg") && !e.closest("pre"))
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1);
  const button = document.querySelector(".legend button[value='l1_filter']");
  const marks = () => [...document.querySelectorAll(".chart path")].map((e) => e.outerHTML).join();
  const before = marks();
  button.focus();
  const focused = document.activeElement === button;
  button.click();
  const focusable = document.querySelectorAll("summary, button, [tabindex='0']").length;
  return {
    charts: charts.length, drawn: charts.filter((c) => c.querySelector("svg path")).length,
    ink: style.color, surface: style.backgroundColor, wide: wide.map((e) => e.outerHTML),
    pressed: button.getAttribute("aria-pressed"), focused, focusable,
    inner: innerWidth, heading: document.querySelector("h1").textContent,
  };
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that does not need trained networks."""
    folder = run_folder(tmp_path_factory.mktemp("page"), CONFIRMED)
    for trial_id in ("vanilla-002", "l1_filter-006"):
        epochs = [{"epoch": epoch, "val_accuracy": 0.5 + epoch / 50} for epoch in range(5)]
        write_reports(folder / "reports" / f"{trial_id}.jsonl", epochs)
    write_report(folder)
    return folder / "report.html"


def rgb(colour: str) -> str:
    """#rrggbb as the browser says it."""
    red, green, blue = bytes.fromhex(colour[1:])
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (500, False)], ids=["light", "dark", "narrow"]
)
def test_every_chart_is_drawn_and_nothing_runs_off_the_side(
    page: Path, width: int, dark: bool
) -> None:
    found = ask(page, LOOK, width=width, dark=dark)
    assert found["problems"] == []
    assert found["drawn"] == found["charts"] == 5  # confirmed, three costs, learning curves
    assert found["wide"] == [] and found["inner"] <= width
    palette = DARK if dark else LIGHT
    assert (found["ink"], found["surface"]) == (rgb(palette.ink), rgb(palette.surface))
    assert found["heading"].startswith("vanilla is the most accurate")


def test_methods_are_chosen_and_details_opened_with_a_keyboard(page: Path) -> None:
    found = ask(page, LOOK)
    assert found["focused"] and found["pressed"] == "true"
    assert found["focusable"] > 10


def test_pointing_at_a_mark_shows_the_trial_and_its_command(page: Path) -> None:
    point = """
      const mark = document.querySelector('.chart[data-cost] svg .mark-symbol path');
      const box = mark.getBoundingClientRect();
      const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
      for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"])
        mark.dispatchEvent(new PointerEvent(kind, at));
      return { tip: document.querySelector("#vg-tooltip-element")?.textContent ?? "" };
    """
    found = ask(page, point)
    assert found["problems"] == []
    assert "python -m orchestrator.trial" in found["tip"] and "validation accuracy" in found["tip"]


LOOK_AT_EDGES = """(() => {
  const charts = [...document.querySelectorAll(".chart, #chart")];
  if (!charts.length || !charts.every((chart) => chart.querySelector("svg path"))) return null;
  const beyond = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
  };
  const shown = [...document.querySelectorAll("body *")]
    .filter((element) => !element.closest("thead, script"))
    .filter((element) => !element.closest("svg") || element.tagName === "text");
  const scrolled = [...document.querySelectorAll(".scroll, pre")]
    .filter((element) => element.scrollWidth > element.clientWidth + 1);
  return {
    inner: innerWidth, whole: document.documentElement.scrollWidth,
    surface: getComputedStyle(document.body).backgroundColor,
    cut: [...shown.filter(beyond), ...scrolled].map((e) => e.outerHTML.slice(0, 300)),
    links: [...document.querySelectorAll("nav a")].map((a) => [a.textContent, a.hash]),
    headings: [...document.querySelectorAll("main h2")].map((h) => [h.textContent, `#${h.id}`]),
  };
})()"""


def test_nothing_is_cut_off_at_any_width_and_the_contents_lead_to_every_section(
    page: Path, tmp_path: Path
) -> None:
    with live_page(tmp_path) as browser:
        for width in (1400, 800, 390):
            for name in ("report.html", "frontier.html"):
                browser.resize(width, 900, dark=width == 800)
                browser.open(page.with_name(name).resolve().as_uri())
                found = browser.when(f"location.href.endsWith('{name}') && {LOOK_AT_EDGES}")
                assert found["inner"] == width >= found["whole"]
                assert found["cut"] == [], (name, width)
                assert found["surface"] == rgb((DARK if width == 800 else LIGHT).surface)
                assert found["links"] == found["headings"]
                assert bool(found["links"]) == (name == "report.html")


def test_single_images_costs_are_drawn(tmp_path: Path) -> None:
    folder = folder_with_images(tmp_path)
    write_report(folder)
    script = "return { bars: document.querySelectorAll('.chart .mark-rect path').length };"
    found = ask(folder / "report.html", script)
    assert found["problems"] == [] and found["bars"] == 2  # two images, each of its own class
