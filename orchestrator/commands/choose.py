"""The command line: `python -m orchestrator.choose runs/NAME` says which network to ship.

    python -m orchestrator.choose runs/NAME [--max-latency-ratio 0.6 | ...] --export my_network

names the best network within the limits and why, and writes it, checked, with a model card. Without
limits it is the one that the report begins with. Where a cascade of the sweep's own networks is
ahead within --max-multiplications, or `--trial A,B` asks for one, it meets the test images, once.
`--register NAME` makes what is written a version of that model in MLflow's registry. Exit status:
0, or 2 where nothing is within the limits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.contender import Limits
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.deploy.registration import register, registry
from orchestrator.deploy.selection import Choice, choose
from orchestrator.formatting import without_password

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    limits = Limits(
        multiplications=args.max_multiplications,
        latency_ms=args.max_latency_ms,
        latency_ratio=args.max_latency_ratio,
        min_accuracy=args.min_accuracy,
    )
    if args.export is not None and args.export.exists():
        print(f"{args.export} exists already, and nothing is overwritten.", file=sys.stderr)
        return BAD_INPUT
    free = Limits(multiplications=limits.multiplications) if "," in (args.trial or "") else Limits()
    if args.trial is not None and (limits != free or args.method is not None):
        print(
            "--trial names the network itself: give no limits and no --method. A cascade's, of "
            "several trials, takes --max-multiplications alone.",
            file=sys.stderr,
        )
        return BAD_INPUT
    if args.register is not None and args.export is None:
        print("--register takes what --export FOLDER writes: give both.", file=sys.stderr)
        return BAD_INPUT
    try:
        result = SweepResult.read(args.folder)
        choice = choose(result, limits, args.method, args.trial)
        print(f"{choice.trial_id}: {choice.why}", flush=True)
        if choice.cascade is not None:
            from orchestrator.deploy.own_cascade import confirmed

            choice = confirmed(result, choice, args.data_root)
            print(choice.test)
        if args.export is not None:
            _ship(args, result, choice)
    except FileNotFoundError as error:
        missing = f"{error.filename} is missing" if error.filename else str(error)
        print(f"{missing}: expected a run folder, whole.", file=sys.stderr)
        return BAD_INPUT
    except ImportError as error:
        print(
            f"Exporting needs {error.name}. Install it with: pip install -e '.[export]'",
            file=sys.stderr,
        )
        return BAD_INPUT
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0


def _ship(args: argparse.Namespace, result: SweepResult, choice: Choice) -> None:
    """Exports the chosen network and, if asked to, registers it."""
    models = None if args.register is None else registry(args.register, result, choice)
    from orchestrator.deploy.export import CARD, export  # imports torch

    print(*export(result, choice, args.export, args.data_root), args.export / CARD, sep="\n")
    if models is not None:
        model = f"models:/{args.register}/{register(models, args.export, result, choice)}"
        print(model)
        print(f'Load it: import mlflow; mlflow.set_tracking_uri("{without_password(models.uri)}");')
        print(f'         model = mlflow.pyfunc.load_model("{model}")')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.choose",
        description="Name the best network of a sweep within limits, and export it. Without limits "
        "it is the one that the report begins with. Within --max-multiplications it may be a "
        "cascade of the sweep's own networks, which is run on the test images once.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/digits_quick")
    parser.add_argument("--method", metavar="METHOD", help="of this method's networks alone")
    parser.add_argument(
        "--trial",
        metavar="TRIAL_ID[,...]",
        help="this trial's network, and no limits; of two or three trials their cascade",
    )
    parser.add_argument("--max-multiplications", type=float, metavar="N", help="per image: 8e6")
    parser.add_argument(
        "--max-latency-ratio",
        type=float,
        metavar="RATIO",
        help="of one image, over the dense network's, measured in turn: 0.6",
    )
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="of one image")
    parser.add_argument(
        "--min-accuracy",
        type=float,
        metavar="SHARE",
        help="a fraction; alone it asks for the cheapest network that reaches it",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the network there, in every format"
    )
    parser.add_argument(
        "--register",
        metavar="NAME",
        help="and make it the next version of the model NAME in MLflow's registry",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="where data sets lie, to check what is exported and confirm cascades (default: data)",
    )
    return parser
