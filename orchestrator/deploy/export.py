"""A network as others can use it: weights, programs in several formats, a model card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from torch import nn

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.deploy.own_cascade import built
from orchestrator.deploy.programs import SINGLE_IMAGES, write_programs
from orchestrator.deploy.selection import Choice
from orchestrator.formatting import render
from orchestrator.jobs.dense import drawn
from orchestrator.jobs.saved_network import saved_network
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.run_folder.reader import past_trial
from testbed.data import load_splits
from testbed.network_file import save_network

WEIGHTS, CARD = "weights.safetensors", "README.md"
TEMPLATES = {False: "model_card.md.jinja", True: "cascade_card.md.jinja"}  # whether it is a cascade


def export(result: SweepResult, choice: Choice, target: Path, data_root: Path) -> list[str]:
    """Writes the chosen network to the folder `target`, in every format, each one checked.

    The folder is there whole or not at all.

    Returns:
        A sentence for each thing to know of what was written.

    Raises:
        FileExistsError: if there is such a folder.
        ImportError: without the extra `export`.
        ValueError: if a format cannot be written, or does not give what the network gives.
    """
    import onnx  # noqa: F401 - a refusal before any work
    import onnxruntime  # noqa: F401

    (folder,) = result.folders
    network: nn.Module
    if choice.cascade is not None:
        network, trials, splits = built(result, choice.cascade, data_root)
    else:
        trials = [past_trial(folder, result.trials, choice.network)]
        splits = load_splits(trials[0].data, data_root, trials[0].seed)
        path = folder / "networks" / f"{choice.network}.safetensors"
        network = saved_network(trials[0], splits, path).eval()
    rows = [pd.Series(result.row(each.trial_id)) for each in trials]
    shown = {"sweep": result.sweep, "choice": choice, "trial": trials[0], "row": rows[0]}
    shown["networks"] = [
        (trial, row, result.settings(row), result.command(row))
        for trial, row in zip(trials, rows, strict=True)
    ]
    with _whole(target) as unfinished:
        save_network(network, unfinished / WEIGHTS)
        notes = write_programs(network, drawn(trials[0], splits), splits, unfinished)
        shown |= {"notes": notes, "single_images": SINGLE_IMAGES in notes[0]}
        card = render("orchestrator.deploy", TEMPLATES[choice.cascade is not None], shown)
        write_atomically(unfinished / CARD, card)
    return notes


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to write to, that becomes `target` if all goes well, and is gone if not."""
    if target.exists():
        raise FileExistsError(f"{target} exists already, and nothing is overwritten.")
    unfinished = target.with_name(f".{target.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
