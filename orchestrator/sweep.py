"""The command line: `python -m orchestrator.sweep SWEEP.yaml` runs a pruning sweep.

Exit status: 0 all trials completed, 1 some failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep

BAD_INPUT, INTERRUPTED = 2, 130

RunSweep = Callable[[Sweep, Path, argparse.Namespace], int]
"""Runs a sweep that was found to be right, into a folder that does not exist yet."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = common_parser(
        "python -m orchestrator.sweep",
        "Run a pruning sweep: trials on Ray, a frontier of accuracy and cost.",
    )
    parser.add_argument(
        "--address", help="a running Ray cluster's; without it a local one is started and stopped"
    )
    return run_checked(parser.parse_args(arguments), _run_sweep)


def run_checked(args: argparse.Namespace, run: RunSweep, only: str | None = None) -> int:
    """Checks the sweep file and the run folder, then runs the sweep; returns the exit status.

    Args:
        only: the one method of the sweep that is run; None runs all.
    """
    try:
        sweep = load_sweep(args.sweep_file, args.overrides, args.data_root)
        if only is not None:
            sweep = sweep.with_method(only)
        folder = args.output / sweep.name
        if args.dry_run:
            from orchestrator.dry_run import describe

            print(describe(sweep))
            if folder.exists():
                print(f"Note: {_exists(folder)}", file=sys.stderr)
            return 0
        if folder.exists():
            raise SweepFileError([_exists(folder)])
        _make_folder(args.output)
        return run(sweep, folder, args)
    except SweepFileError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        sys.stdout = None  # or Python would try to write the rest
        return 0


def _run_sweep(sweep: Sweep, folder: Path, args: argparse.Namespace) -> int:
    from orchestrator.driver import run_on_ray  # seconds of imports, which a refusal does not need

    return run_on_ray(sweep, folder, args.data_root, args.address)


def _make_folder(output: Path) -> None:
    """Makes the folder of all sweeps, before minutes go by until it is needed."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepFileError([f"--output: cannot make {output}: {error.strerror}."]) from error


def _exists(folder: Path) -> str:
    return (
        f"{folder} exists already, and no run is overwritten. Give this one another name with "
        "--set name=..., or another folder with --output, or move the old one away."
    )


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
    parser.add_argument(
        "--dry-run", action="store_true", help="print the trials that would run, and start nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
