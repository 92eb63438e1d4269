"""The command line: `python -m orchestrator.choose runs/NAME` says which network to ship.

    python -m orchestrator.choose runs/NAME --max-multiplications 8e6 --export my_network

names the best confirmed trial within the limits and why, and writes its network, checked, with a
model card. `--register NAME` makes what is written a version of that model in MLflow's registry.
Exit status: 0, or 2 where nothing is within the limits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from orchestrator.deploy.selection import Choice, Limits, choose
from orchestrator.report.sweep_result import SweepResult
from orchestrator.run_folder.reader import past_trial
from orchestrator.run_folder.trials_table import write_atomically

if TYPE_CHECKING:
    from orchestrator.tracking.model_registry import ModelRegistry

BAD_INPUT = 2
REGISTERED = (  # columns of trials.csv that are tags of a registered version
    "trial_id",
    "method",
    "val_accuracy",
    "test_accuracy",
    "multiplications",
    "dense_multiplications",
    "parameters",
    "latency_ms",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    limits = Limits(args.max_multiplications, args.max_latency_ms, args.min_accuracy)
    if args.export is not None and args.export.exists():
        print(f"{args.export} exists already, and nothing is overwritten.", file=sys.stderr)
        return BAD_INPUT
    if args.register is not None and args.export is None:
        print("--register takes what --export FOLDER writes: give both.", file=sys.stderr)
        return BAD_INPUT
    try:
        result = SweepResult.read(args.folder)
        choice = choose(result.trials, result.objectives, limits)
        print(f"{choice.point['trial_id']}: {choice.why}")
        registry = None if args.register is None else _registry(args, result, choice)
        if args.export is not None:
            _export(args, result, choice)
        if registry is not None:
            _register(registry, args, result, choice)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: expected a run folder, whole.", file=sys.stderr)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.choose",
        description="Name the best confirmed trial of a sweep within limits, and export it.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/digits_quick")
    parser.add_argument("--max-multiplications", type=float, metavar="N", help="per image: 8e6")
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
        help="where data sets lie, to check what is exported (default: data)",
    )
    return parser


def _registry(args: argparse.Namespace, result: SweepResult, choice: Choice) -> ModelRegistry:
    from orchestrator.run_folder.folder import sweep_id
    from orchestrator.tracking.model_registry import ModelRegistry

    folder = args.folder.resolve()
    name, identity = result.sweep["name"], sweep_id(folder)
    return ModelRegistry(args.register, folder.parent, name, identity, choice.network)


def _register(
    registry: ModelRegistry, args: argparse.Namespace, result: SweepResult, choice: Choice
) -> None:
    row = result.trials[result.trials["trial_id"] == choice.network].iloc[0]
    tags = {name: row[name] for name in REGISTERED if pd.notna(row[name])}
    tags["sweep"] = result.sweep["name"]
    try:
        version = registry.register(args.export, tags, choice.why)
    except Exception as error:  # of MLflow, of its database, of the network
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{args.export} is written, but MLflow does not register it ({reason}). Give another "
            "folder to --export once it does."
        ) from error
    print(f"models:/{args.register}/{version}")


def _export(args: argparse.Namespace, result: SweepResult, choice: Choice) -> None:
    from orchestrator.deploy.export import export  # imports torch

    trial = past_trial(args.folder, result.trials, choice.network)
    exported = export(trial, args.folder, args.export, args.data_root)
    row = result.trials[result.trials["trial_id"] == choice.network].iloc[0]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.deploy", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    card = environment.get_template("model_card.md.jinja").render(
        sweep=result.sweep,
        choice=choice,
        trial=trial,
        row=row,
        notes=exported.notes,
        command=result.command(row),
    )
    write_atomically(args.export / "README.md", card.encode())
    for note in exported.notes:
        print(note)
    print(args.export / "README.md")
