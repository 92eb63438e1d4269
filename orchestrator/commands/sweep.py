"""The command line: `python -m orchestrator.sweep SWEEP.yaml` runs a pruning sweep.

Run the same command to resume.

Exit status: 0 all trials completed, 1 some failed, 2 bad input, 3 the results could not be written
(a full disk), 130 interrupted.
"""

import argparse
import errno
import gc
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.run_folder.atomic_files import FULL_DISK
from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep

BAD_INPUT, NOT_WRITTEN, INTERRUPTED = 2, 3, 130
CANNOT_WRITE = (*FULL_DISK, errno.EACCES, errno.EIO)

# Rows and MLflow's objects are many and small: with Python's own thresholds, a quarter of the
# driver's time goes into looking for cycles among them.
GARBAGE_COLLECTION = (50_000, 20, 100)

RunSweep = Callable[[Sweep, Path, argparse.Namespace], int]
"""Runs a sweep that was found to be right, in a folder that is not there or is its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    gc.set_threshold(*GARBAGE_COLLECTION)
    parser = common_parser(
        "python -m orchestrator.sweep",
        "Run a pruning sweep: Ray Tune schedules the trials; out comes a Pareto front.",
    )
    parser.add_argument(
        "--address", help="a running Ray cluster's; without it a local one is started and stopped"
    )
    return run_checked(parser, arguments, _run_sweep)


def run_checked(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, run: RunSweep
) -> int:
    """Checks the sweep file and the run folder, then runs the sweep; returns the exit status.

    Args:
        parser: a `common_parser`; where it has `--only`, that is the one method which is run.
        arguments: None takes the command line's.
    """
    args = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    again = shlex.join(word for word in given if word != "--fresh")
    resume_with = f"Resume with: {parser.prog} {again}"
    try:
        with _sigterm_as_ctrl_c():
            status = _run_checked(args, run)
    except SweepFileError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        sys.stdout = None  # or Python would try to write the rest
        return 0
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(f"Cannot write: {error}. What was complete stays as it is.", file=sys.stderr)
        status = NOT_WRITTEN
    if status in (INTERRUPTED, NOT_WRITTEN):
        print(resume_with, file=sys.stderr)
    return status


def _run_checked(args: argparse.Namespace, run: RunSweep) -> int:
    sweep = load_sweep(args.sweep_file, args.overrides, args.data_root, args.presets)
    if args.only is not None:
        sweep = sweep.with_method(args.only)
    folder = args.output / sweep.name
    if args.dry_run:
        from orchestrator.plan import make_plan
        from orchestrator.plan.dry_run import describe

        print(describe(make_plan(sweep)))
        if folder.exists():
            print(f"Note: {_what_becomes_of(folder, sweep, args.fresh)}", file=sys.stderr)
        return 0
    _make_folder(args.output)
    from orchestrator.run_folder.folder import check_resumable, only_driver  # imports torch

    with only_driver(folder):
        if folder.exists() and not args.fresh:
            check_resumable(folder, sweep)
        return run(sweep, folder, args)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A cluster's scheduler sends SIGTERM where a person presses Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _what_becomes_of(folder: Path, sweep: Sweep, fresh: bool) -> str:
    """What a run would do with the folder that is there already."""
    if fresh:
        return f"{folder} would be moved aside."
    from orchestrator.run_folder.folder import check_resumable

    try:
        check_resumable(folder, sweep)
    except SweepFileError as error:
        return str(error)
    return f"{folder} is there already, and would be resumed."


def _run_sweep(sweep: Sweep, folder: Path, args: argparse.Namespace) -> int:
    from orchestrator.driver.driver import (  # seconds of imports, not for a refusal
        Resume,
        run_on_ray,
    )

    resume = Resume(args.fresh, args.retry_failed)
    return run_on_ray(sweep, folder, args.data_root, args.address, resume)


def _make_folder(output: Path) -> None:
    """Makes the folder of all sweeps, before minutes go by until it is needed."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepFileError([f"--output: cannot make {output}: {error.strerror}."]) from error


def common_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The arguments of every command that runs a sweep file."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("sweep_file", metavar="SWEEP.yaml", type=Path)
    parser.add_argument(
        "--set",
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="change the sweep file, as in backbone.depth=4 or 'backbone.depth={grid: [4, 6]}'; "
        "may be given again",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        dest="presets",
        action="append",
        default=[],
        help="change the sweep file as presets/NAME.yaml beside it says; may be given again",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("runs"),
        help="where the sweep leaves its folder (default: runs)",
    )
    parser.add_argument(
        "--data-root",
        metavar="FOLDER",
        type=Path,
        default=Path("data"),
        help="where data sets lie, and are downloaded to (default: data)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--retry-failed",
        action="store_true",
        help="where the sweep is resumed, run the trials again that failed",
    )
    again.add_argument(
        "--fresh",
        action="store_true",
        help="move the run folder of that name aside, in place of resuming it",
    )
    parser.set_defaults(only=None)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the trials that would run, and start nothing"
    )
    return parser
