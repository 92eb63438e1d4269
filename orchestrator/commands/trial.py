"""The command line `python -m orchestrator.trial SWEEP.yaml [--only METHOD]`: a sweep without Ray.

Runs the same trials in this one process and leaves the same files behind, on a machine without Ray,
Optuna or MLflow. Options must be values and grids, as nothing searches here.

Run the same command to resume.

Exit status: that of `python -m orchestrator.sweep`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from orchestrator.commands.sweep import common_parser, run_checked
from orchestrator.sweep_file import Sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = common_parser(
        "python -m orchestrator.trial",
        "Run a sweep's trials in one plain process, without Ray, Optuna or MLflow.",
    )
    parser.add_argument("--only", metavar="METHOD", help="run the trials of this method only")
    return run_checked(parser, arguments, _run)


def _run(sweep: Sweep, folder: Path, args: argparse.Namespace) -> int:
    from orchestrator.driver.driver import Resume, run_in_this_process

    resume = Resume(args.fresh, args.retry_failed)
    return run_in_this_process(sweep, folder, args.data_root, resume)
