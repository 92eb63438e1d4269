"""The command line `python -m orchestrator.report runs/NAME`, or of several run folders.

    python -m orchestrator.report runs/A [runs/B ...]

reads sweep.yaml and the tables of its trials, and writes frontier.csv, report.html (one file that
opens offline), report.md, frontier.png and frontier.html (that chart, offline too, with what there
is to know of the mark that is pointed at) beside them. The report of several is a folder of its own
beside the first, `A+B`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.report", description=__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", help="run folders, such as runs/digits_quick"
    )
    folders = parser.parse_args(arguments).folders
    try:
        print(write_report(*folders) / "report.html")
    except FileNotFoundError as error:
        missing = Path(error.filename)
        print(f"{missing.parent} is no run folder: it has no {missing.name}.", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
