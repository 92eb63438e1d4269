"""What a person reads while a sweep runs, in a terminal and in a log."""

import io
import math
import threading
from typing import Any

import pytest
from rich.console import Console

from orchestrator.console.live_display import Standing, display
from orchestrator.console.progress import Progress
from orchestrator.console.time_left import Durations
from orchestrator.formatting import duration, millions, milliseconds, percent


def console(terminal: bool) -> Console:
    # Colours off, so that the text can be read; a terminal is as wide as the longest line here.
    return Console(
        file=io.StringIO(), force_terminal=terminal, color_system=None, width=120, height=30
    )


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def row(trial_id: str = "l1_filter-depth4-s0-003", **columns: Any) -> dict[str, Any]:
    usual = {
        "trial_id": trial_id,
        "method": "l1_filter",
        "status": "completed",
        "val_accuracy": 0.9121,
        "multiplications": 7_900_000.0,
        "dense_multiplications": 27_058_176.0,
        "duration_s": 12.4,
        "error": None,
    }
    return {**usual, **columns}


def test_a_log_gets_one_plain_line_for_each_trial() -> None:
    log = console(terminal=False)
    with Progress(40, log) as progress:
        progress.trial_started("l1_filter-depth4-s0-003")
        progress.trial_report("l1_filter-depth4-s0-003", {"epoch": 1, "val_accuracy": 0.5})
        progress.trial_done(row())
        progress.trial_done(row("l1_filter-depth4-s0-004", duration_s=200.0))
    assert written(log) == (
        "[ 1/40] l1_filter-depth4-s0-003  val 0.912  7.90 M multiplications (29 % of dense)  12 s\n"
        "[ 2/40] l1_filter-depth4-s0-004  val 0.912  7.90 M multiplications (29 % of dense)  "
        "3 min 20 s\n"
    )


def test_a_failed_trial_shows_the_first_line_of_its_error() -> None:
    log = console(terminal=False)
    error = "ValueError: no layer [red]left[/] to prune\nTraceback: ..."
    with Progress(2, log) as progress:
        progress.trial_done(
            row("a", status="failed", error=error, val_accuracy=None, multiplications=None)
        )
        progress.trial_done({"trial_id": "b", "method": "dense", "status": "stopped"})
    assert written(log) == (
        "[1/2] a  failed: ValueError: no layer [red]left[/] to prune  12 s\n"
        "[2/2] b  stopped: no reason given  –\n"  # noqa: RUF001
    )


def test_long_lines_in_a_log_are_not_broken() -> None:
    log = console(terminal=False)
    with Progress(1, log) as progress:
        progress.message("x" * 500 + " [not markup]")
    assert written(log) == "x" * 500 + " [not markup]\n"


def test_a_new_phase_starts_its_own_count() -> None:
    log = console(terminal=False)
    with Progress(3, log) as progress:
        progress.phase("Dense networks", 2)
        progress.trial_done(row("dense-0"))
        progress.phase("Search", 10)
        progress.trial_done(row("a"))
    lines = written(log).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "Dense networks",
        "[1/2] dense-0",
        "Search",
        "[ 1/10] a",
    ]


def shown(progress: Progress) -> str:
    """The live display as it stands."""
    paper = console(terminal=False)
    paper.print(progress._display())
    return written(paper)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds on the display's clock, which stands until it is set."""
    seconds = [1000.0]
    for module in ("live_display", "progress"):
        monkeypatch.setattr(f"orchestrator.console.{module}.monotonic", lambda: seconds[0])
    return seconds


def test_a_terminal_shows_what_is_done_running_and_failed(clock: list[float]) -> None:
    terminal = console(terminal=True)
    with Progress(10, terminal) as progress:
        progress.phase("Search", 10)
        progress.trial_started("running-one")
        progress.trial_report("running-one", {"epoch": 3, "val_accuracy": 0.4125, "loss": 1.0})
        for number in range(4):
            progress.trial_done(row(f"l1_filter-depth4-s0-{number:03}"))
        progress.trial_done(row("broken", status="failed", error="OSError: disk full"))
        clock[0] += 75
        display = shown(progress)
    lines = display.splitlines()
    assert lines[0] == "Search · 5 of 10 done · 1 failed"
    assert lines[2].startswith("1 running · 1 min 15 s so far")
    (running,) = [line.split() for line in lines if "running-one" in line]
    assert running == ["1", "running-one", "epoch", "3", "val", "0.412", "1", "min", "15", "s"]
    assert "loss" not in display
    assert "broken  failed: OSError: disk full" in written(terminal)
    assert "l1_filter-depth4" not in written(terminal)  # completed trials leave no line


def test_a_log_says_how_it_stands_where_no_trial_ends_for_five_minutes(clock: list[float]) -> None:
    log = console(terminal=False)
    with Progress(10, log) as progress:
        progress.trial_started("first")
        clock[0] += 200
        progress.trial_done(row("first"))
        progress.trial_started("long-one")
        progress.trial_started("[silent-one]")
        for epoch in range(1, 6):
            clock[0] += 80
            progress.trial_report("long-one", {"epoch": epoch, "val_accuracy": 0.4125})
    lines = written(log).splitlines()
    assert len(lines) == 2  # one of the trial, one of the fourth epoch
    assert lines[1] == (
        "1 of 10 done · 2 running · 8 min 40 s so far · about 11 min 40 s left of this part · "
        "long-one: epoch 4  val 0.412 · [silent-one]: begun"
    )


def test_the_frontier_so_far_holds_what_no_other_trial_of_its_method_beats() -> None:
    points = [(0.2, 0.6), (0.5, 0.8), (0.9, 0.7), (0.4, 0.75), (0.5, 0.8), (0.6, float("nan"))]
    with Progress(10, console(terminal=True)) as progress:
        for share, val_accuracy in points:
            progress.trial_done(
                row(val_accuracy=val_accuracy, multiplications=100 * share)
                | {"dense_multiplications": 100}
            )
        progress.trial_done(row(method="rnp", multiplications=None))
        again = row(val_accuracy=0.99, multiplications=1, phase="confirmation")
        progress.trial_done(again)  # with a fresh seed: the search has not seen it
        lines = shown(progress).splitlines()
    (own,) = [line.split() for line in lines if line.startswith("l1_filter")]
    assert own == [
        "l1_filter",
        "6",
        "0.600",
        "at",
        "20",
        "%",
        "0.750",
        "at",
        "40",
        "%",
        "0.800",
        "at",
        "50",
        "%",
    ]
    (other,) = [line.split() for line in lines if line.startswith("rnp")]
    assert other == ["rnp", "1"]


def test_the_time_left_is_of_the_jobs_left_and_the_places_that_do_them(clock: list[float]) -> None:
    standing = Standing(total=10)
    standing.begin_part("Trials", 10)
    standing.start("dense network")
    clock[0] += 300  # however long the dense network takes
    assert math.isnan(standing.seconds_left())
    standing.stop("dense network")
    standing.start("a")
    standing.start("b")
    clock[0] += 10
    standing.end("a", "completed")
    standing.start("c")
    clock[0] += 10
    standing.end("b", "completed")
    standing.start("d")
    # 8 jobs of 15 s, of which c has run for 10, on two places
    assert standing.seconds_left() == (8 * 15 - 10) / 2
    standing.begin_part("Test images", 4)
    assert math.isnan(standing.seconds_left())


QUICK = {  # seconds of a trial and their number, as sweeps/digits_quick.yaml had on two busy cores
    "dense": (2.5, 1), "vanilla": (7, 3), "random_channels": (4, 6), "l1_filter": (4, 6),
    "thinet": (6, 2), "magnitude": (4, 6), "policy_gradient": (11, 6), "static_prefix": (8, 6),
    "rnp": (16, 6),
}  # fmt: skip


@pytest.mark.parametrize("places", [1, 2])
def test_from_the_second_trial_on_the_time_left_is_right_within_a_factor_of_two(
    clock: list[float], places: int
) -> None:
    planned = {method: n for method, (_, n) in QUICK.items()}
    jobs = [(f"{m}-s0-{n:03}", took) for m, (took, tries) in QUICK.items() for n in range(tries)]
    begun, free = [], [0.0] * places
    for name, took in jobs:  # in order, each in the place that is free first
        place = free.index(min(free))
        begun.append((free[place], free[place] + took, name))
        free[place] += took
    events = sorted([(s, 1, n) for s, _, n in begun] + [(e, 0, n) for _, e, n in begun])
    standing = Standing(total=len(jobs), durations=Durations(planned))
    whole, ended = max(free), 0
    standing.begin_part("Trials", len(jobs))
    for at, starts, name in events:
        clock[0] = 1000 + at
        if starts:
            standing.start(name)
            continue
        standing.end(name, "completed")
        ended += 1
        left = whole - at
        if ended >= 2 and left > 10:
            assert left / 2 < standing.seconds_left() < 2 * left, name
    for method in QUICK:  # two points of each are confirmed
        for point in ((0.2, 0.5), (0.4, 0.6)):
            standing.add_point(method, point)
    standing.begin_part("Confirmation of the Pareto fronts", 18)
    left = 2 * sum(took for took, _ in QUICK.values()) / places
    for name in ("dense-s0-000-c1", "vanilla-s0-000-c1"):
        standing.start(name)
        clock[0] += QUICK[name.partition("-")[0]][0]
        left -= QUICK[name.partition("-")[0]][0] / places
        standing.end(name, "completed")
        assert left / 2 < standing.seconds_left() < 2 * left
    standing.begin_part("Test images", 18)
    assert math.isnan(standing.seconds_left())
    standing.start("dense-s0-000-c1 on test images")
    clock[0] += 0.5
    standing.end("dense-s0-000-c1 on test images", "completed")
    assert standing.seconds_left() == pytest.approx(17 * 0.5 / places)


def test_what_rnp_learns_is_shown_by_its_steps_and_its_epochs_take_their_place() -> None:
    with Progress(3, console(terminal=True)) as progress:
        progress.trial_started("rnp-s0-000")
        progress.trial_report("rnp-s0-000", {"epoch": 2, "val_accuracy": 0.5})
        progress.trial_report("rnp-s0-000", {"q_step": 120, "q_loss": 0.5, "mean_return": -1.0})
        assert "Q-learning step 120  val 0.500" in shown(progress)
        assert "epoch" not in shown(progress)
        progress.trial_report("rnp-s0-000", {"round": 1, "epoch": 3, "val_accuracy": 0.6})
        assert "round 1  epoch 3  val 0.600" in shown(progress)


def test_the_frontier_stays_on_the_screen_at_the_end() -> None:
    terminal, log = console(terminal=True), console(terminal=False)
    for each in (terminal, log):
        with Progress(1, each) as progress:
            progress.trial_done(row())
    assert "0.912 at  29 %" in written(terminal).rpartition("\x1b")[2]
    assert "frontier so far" not in written(log)


def test_a_place_keeps_its_number_and_is_idle_when_it_has_no_job() -> None:
    with Progress(9, console(terminal=True)) as progress:
        for name in "abc":
            progress.trial_started(name)
        progress.trial_done(row("b"))
        rows = [line.split()[:2] for line in shown(progress).splitlines()[4:7]]
        assert rows == [["1", "a"], ["2", "idle"], ["3", "c"]]
        progress.trial_started("c")  # its worker was lost: it starts again, and runs once
        progress.trial_started("d")
        running = [line.split()[:2] for line in shown(progress).splitlines()[4:7]]
    assert sorted(name for _, name in running) == ["a", "c", "d"]


@pytest.mark.parametrize("width", [20, 80, 120])
@pytest.mark.parametrize("height", [1, 2, 4, 5, 8, 10, 24, 40])
@pytest.mark.parametrize("jobs", [0, 2, 100])
@pytest.mark.parametrize("methods", [0, 1, 9, 30])
def test_the_display_fits_any_terminal(width: int, height: int, jobs: int, methods: int) -> None:
    standing = Standing(total=500)
    standing.begin_part("Confirmation of the frontiers", 500)
    for number in range(jobs):
        standing.start(f"my_package.methods:a_long_name-depth=8 dropout=0.1-s0-{number:03}")
    for number in range(methods):
        for step in range(20):
            point = (step / 20, step / 20)
            standing.add_point(f"my_package.methods:another_long_name_{number}", point)
    paper = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    paper.print(display(standing, width, height))
    lines = written(paper).splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    if height >= 10 and width >= 80:
        text = "\n".join(lines)
        assert jobs < 3 or "running now" in text
        assert not methods or ("1.000" not in text and "0.950 at  95 %" in text)
    if height == 24 and width >= 80 and jobs == 100 and methods == 9:
        shown = sum("a_long_name" in line for line in lines)
        assert f"and {100 - shown} more" in text and text.count("0.950 at  95 %") == 9


def test_a_report_after_the_end_does_not_bring_a_trial_back() -> None:
    terminal = console(terminal=True)
    with Progress(2, terminal) as progress:
        progress.trial_started("a")
        progress.trial_done(row("a"))
        progress.trial_report("a", {"epoch": 9})
        assert "0 running" in shown(progress)


def test_threads_may_share_it() -> None:
    terminal = console(terminal=True)
    with Progress(200, terminal) as progress:

        def run(worker: int) -> None:
            for number in range(50):
                progress.trial_started(f"{worker}-{number}")
                progress.trial_report(f"{worker}-{number}", {"epoch": number})
                progress.trial_done(row(f"{worker}-{number}"))
                shown(progress)

        threads = [threading.Thread(target=run, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "200 of 200 done\n" in shown(progress) and "0 running" in shown(progress)


@pytest.mark.parametrize(
    ("written_as", "expected"),
    [
        (millions(27_058_176), "27.1 M"),
        (millions(312_345), "0.312 M"),
        (millions(288_018_432), "288 M"),
        (millions(15_500_000_000), "15,500 M"),
        (millions(99_960_000), "100 M"),
        (millions(8_600_000), "8.60 M"),
        (millions(0), "0 M"),
        (milliseconds(0.01532), "0.0153 ms"),
        (percent(0.294), "29 %"),
        (percent(0.0042), "0.4 %"),
        (percent(0), "0 %"),
        (percent(float("nan")), "–"),  # noqa: RUF001
        (duration(8.4), "8 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(7500), "2 h 05 min"),
    ],
)
def test_figures_are_written_shortly(written_as: str, expected: str) -> None:
    assert written_as == expected
