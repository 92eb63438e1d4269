"""What MLflow's own pages show of a sweep: the runs, the view "Frontier", the chart's artifact."""

import base64
import dataclasses
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image, ImageColor
from test_mlflow_server import mlflow_server

from orchestrator.analysis.answer import cascade_said
from orchestrator.analysis.cascade_decision import Ahead
from orchestrator.analysis.cascades import judged
from orchestrator.analysis.comparison import compare_methods
from orchestrator.analysis.decision import decisions
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.palette import LIGHT, lighter, method_marks
from orchestrator.plan import make_plan
from orchestrator.report import write_report
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.view import TAG, view_to_write
from tests.browser import ask, needs_chromium
from tests.knowing_networks import knowing
from tests.live_page import LivePage, live_page
from tests.report_rows import CONFIRMED, run_folder

AXES = """(() => {
  const chart = document.querySelector(".js-plotly-plot");
  const points = [...(chart?.querySelectorAll(".scatterlayer .point") ?? [])];
  return points.length && {
    x: chart.querySelector(".xtitle").textContent,
    y: chart.querySelector(".ytitle").textContent,
    colours: points.map((point) => getComputedStyle(point).fill),
  };
})()"""


def state_of(tag: str) -> dict[str, Any]:
    """The state of a view, as the UI reads it."""
    deflated = json.loads(tag)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(deflated)))
    return state


def test_a_view_is_written_once_and_mended_in_place() -> None:
    new = view_to_write(None)
    assert new is not None
    assert view_to_write(new) is None
    changed = {**json.loads(new), "state": "{}", "createdAt": 7}
    mended = view_to_write(json.dumps(changed))
    assert mended is not None and state_of(mended) == state_of(new)
    assert json.loads(mended)["createdAt"] == 7 < json.loads(mended)["updatedAt"]


def cascade() -> Ahead:
    own = judged(knowing(200, 3), (0, 2), (0.5,), alone=1)
    return Ahead(own, own.ahead, own.error, 1)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, str]:
    """A sweep that was written to a database twice, as by the same command again; its URI."""
    folder = run_folder(tmp_path_factory.mktemp("runs") / "small", CONFIRMED)
    write_report(folder)
    result = SweepResult.read(folder)
    said: list[str] = []
    studies = result.trials["method"] + "-depth4-s0"
    rows: list[Any] = result.trials.assign(study=studies).to_dict("records")
    plan = make_plan(load_sweep(folder / "sweep.yaml"))
    for _ in range(2):
        with (
            pytest.MonkeyPatch.context() as environment,
            Tracker(plan, folder, said.append, rows) as tracker,
        ):
            environment.delenv("MLFLOW_TRACKING_URI", raising=False)
            comparison = compare_methods(result.trials, result.objectives)
            first, *others = decisions(result)
            tracker.finish(comparison, [dataclasses.replace(first, cascade=cascade()), *others])
    assert said == []
    return result, f"sqlite:///{folder.parent / 'mlflow.db'}"


@pytest.fixture(scope="module")
def page(
    tracked: tuple[SweepResult, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LivePage, str]]:
    """A browser, and the address of an MLflow that serves the database."""
    folder = tmp_path_factory.mktemp("served")
    with mlflow_server(tracked[1], folder) as url, live_page(folder) as page:
        yield page, url


def runs(tracked: tuple[SweepResult, str]) -> tuple[str, dict[str, Any]]:
    """The experiment's id, and its runs by name."""
    client = MlflowClient(tracked[1])
    experiment = client.get_experiment_by_name(tracked[0].sweep["name"])
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return experiment.experiment_id, {run.info.run_name: run for run in found}


def test_a_cascade_that_is_ahead_is_a_tag_of_the_reports_run(
    tracked: tuple[SweepResult, str],
) -> None:
    tags = runs(tracked)[1]["frontier"].data.tags
    assert tags["cascade_at_75"] == cascade_said(cascade())
    assert "best_at_50" in tags and "cascade_at_50" not in tags


def test_an_experiment_has_one_view_with_the_chart_and_its_runs_the_reports_colours(
    tracked: tuple[SweepResult, str],
) -> None:
    experiment, found = runs(tracked)
    tags = MlflowClient(tracked[1]).get_experiment(experiment).tags
    (view,) = [tag for tag in tags if tag.startswith("mlflow.sharedViewState.")]
    assert view == TAG and json.loads(tags[view])["name"] == "Frontier"
    assert "report.html" in tags["mlflow.note.content"]
    charts = state_of(tags[view])["compareRunCharts"]
    metrics = {name for run in found.values() for name in run.data.metrics}
    params = {name for run in found.values() for name in run.data.params}
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in charts]
    assert axes == [("share", "val_accuracy"), ("confirmed_share", "confirmed_accuracy")]
    assert {key for pair in axes for key in pair} <= metrics
    for column in state_of(tags[view])["selectedColumns"]:
        kind, name = column.split(".", 1)
        known = {"params": params, "metrics": metrics, "tags": {"status", "phase", "sweep"}}[kind]
        assert name.strip("`") in known
    marks = method_marks(tracked[0].methods, LIGHT)
    assert len(found) == len(tracked[0].trials) + 1
    for name, run in found.items():
        if name != "frontier":
            colour = marks[run.data.params["method"]][0]
            again = run.data.tags["phase"] == "confirmation"
            assert run.data.tags["mlflow.runColor"] == (lighter(colour) if again else colour)


def test_runs_say_which_sweep_and_phase_they_are_of_and_what_confirmations_came_to(
    tracked: tuple[SweepResult, str],
) -> None:
    _, found = runs(tracked)
    assert {run.data.tags["sweep"] for run in found.values()} == {"small"}
    assert found["vanilla-002-c1"].data.tags["phase"] == "confirmation"
    searched = found["vanilla-002"].data
    assert searched.tags["phase"] == "search" and searched.tags["method"] == "vanilla"
    assert searched.tags["confirmed"] == "0.850 ± 0.010 on test images, n = 3"
    assert searched.metrics["confirmed_accuracy"] == pytest.approx(0.85)
    assert searched.metrics["confirmed_share"] == searched.metrics["share"] == 0.5
    assert searched.metrics["latency_ratio"] == pytest.approx(0.6)
    assert "confirmed" not in found["vanilla-001"].data.tags
    report = found["frontier"].data
    assert report.tags["phase"] == "report"
    assert report.tags["best_at_50"] == "vanilla: vanilla-002"
    assert report.metrics["best_at_50/accuracy"] == pytest.approx(0.85)
    assert report.metrics["best_at_50/share"] == 0.5


@needs_chromium
def test_the_view_shows_the_runs_and_the_scatter_chart(
    tracked: tuple[SweepResult, str], page: tuple[LivePage, str]
) -> None:
    browser, url = page
    experiment, _ = runs(tracked)
    shared = "compareRunsMode=CHART&viewStateShareKey=frontier"
    browser.open(f"{url}/#/experiments/{experiment}/runs?{shared}")
    chart = browser.when(AXES)
    assert (chart["x"], chart["y"]) == ("share", "val_accuracy")
    trials = tracked[0].trials.dropna(subset=["val_accuracy", "multiplications"])
    marks = method_marks(tracked[0].methods, LIGHT)
    colours = [
        lighter(marks[method][0]) if phase == "confirmation" else marks[method][0]
        for method, phase in zip(trials["method"], trials["phase"], strict=True)
    ]
    expected = list(map(ImageColor.getrgb, colours))
    assert sorted(chart["colours"]) == sorted(f"rgb{colour}" for colour in expected)
    opener = browser.when("document.querySelector('[data-testid=saved-views-trigger]')?.innerText")
    assert opener == "Frontier"
    text = browser.text()
    assert "Sort: val_accuracy" in text and trials["trial_id"].iloc[0] in text


@needs_chromium
def test_the_artifacts_chart_is_drawn_in_mlflows_page(
    tracked: tuple[SweepResult, str], page: tuple[LivePage, str]
) -> None:
    browser, url = page
    experiment, found = runs(tracked)
    run = found["frontier"].info.run_id
    browser.open(f"{url}/#/experiments/{experiment}/runs/{run}/artifacts/frontier.html")
    browser.when("document.querySelector('iframe#html')?.src")
    # The frame is a page of its own, of which only the colours can be seen from here.
    marks = method_marks(tracked[0].methods, LIGHT)
    wanted = {ImageColor.getrgb(marks[m][0]) for m in ("l1_filter", "vanilla")}
    for _ in range(60):
        picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
        seen = {colour for _, colour in picture.getcolors(picture.width * picture.height) or []}
        if wanted <= seen:
            break
    assert wanted <= seen


@needs_chromium
def test_the_artifacts_chart_needs_no_network_and_tells_of_the_mark_pointed_at(
    tracked: tuple[SweepResult, str],
) -> None:
    script = """
      const marks = [...document.querySelectorAll("#chart svg .mark-symbol.role-mark path")];
      const box = marks.at(-1).getBoundingClientRect();
      const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
      for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"])
        marks.at(-1).dispatchEvent(new PointerEvent(kind, at));
      return { tip: document.querySelector("#vg-tooltip-element")?.textContent ?? "" };
    """
    found = ask(tracked[0].folders[0] / "frontier.html", script)
    assert found["problems"] == []
    assert "python -m orchestrator.trial" in found["tip"]
