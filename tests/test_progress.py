"""What a person reads while a sweep runs, in a terminal and in a log."""

import io
import threading
from typing import Any

import pytest
from rich.console import Console

from orchestrator.notation import duration, millions, milliseconds, percent
from orchestrator.progress import Progress


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


def test_a_terminal_shows_what_is_done_running_and_failed_and_the_best_so_far() -> None:
    terminal = console(terminal=True)
    with Progress(10, terminal) as progress:
        progress.phase("Search", 10)
        progress.trial_started("running-one")
        progress.trial_report("running-one", {"epoch": 3, "val_accuracy": 0.4125, "loss": 1.0})
        for share, val_accuracy in ((0.2, 0.6), (0.5, 0.8), (0.9, 0.7), (0.4, 0.75)):
            progress.trial_done(
                row(
                    val_accuracy=val_accuracy,
                    multiplications=100 * share,
                    dense_multiplications=100,
                )
            )
        progress.trial_done(row("broken", status="failed", error="OSError: disk full"))
        display = shown(progress)
    first, *rest = display.splitlines()
    assert "Search · 5 of 10 done · 1 running · 1 failed" in first
    assert "left" in first
    assert "running-one  epoch 3  val_accuracy 0.4125" in display
    assert "loss" not in display
    best = next(line for line in rest if "l1_filter" in line)
    assert best.split() == ["l1_filter", "4", "0.600", "0.800", "0.800", "0.800"]
    assert "broken  failed: OSError: disk full" in written(terminal)
    assert "l1_filter-depth4" not in written(terminal)  # completed trials leave no line


def test_more_running_trials_than_lines_are_counted() -> None:
    terminal = console(terminal=True)
    with Progress(200, terminal) as progress:
        for number in range(100):
            progress.trial_started(f"trial-{number}")
        display = shown(progress)
    assert "and 90 more" in display
    assert len(display.splitlines()) < terminal.height


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
        assert "200 of 200 done · 0 running" in shown(progress)


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
