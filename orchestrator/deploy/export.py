"""A trial's network as others can use it: weights, programs in several formats, a model card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.deploy.programs import SINGLE_IMAGES, write_programs
from orchestrator.deploy.selection import Choice
from orchestrator.formatting import render
from orchestrator.jobs.dense import drawn
from orchestrator.methods import method_class
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.run_folder.reader import past_trial
from testbed.data import load_splits
from testbed.method import load_pruned

WEIGHTS, CARD = "weights.safetensors", "README.md"


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
    trial = past_trial(folder, result.trials, choice.network)
    splits = load_splits(trial.data, data_root, trial.seed)
    method = method_class(trial.method).model_validate(trial.options)
    weights = folder / "networks" / f"{trial.trial_id}.safetensors"
    network = load_pruned(weights, method, drawn(trial, splits)).eval()
    row = result.trials[result.trials["trial_id"] == choice.network].iloc[0]
    shown = {"sweep": result.sweep, "choice": choice, "trial": trial, "row": row}
    shown["command"] = result.command(row)
    with _whole(target) as unfinished:
        shutil.copyfile(weights, unfinished / WEIGHTS)
        notes = write_programs(network, drawn(trial, splits), splits, unfinished)
        card = render(
            "orchestrator.deploy",
            "model_card.md.jinja",
            {**shown, "notes": notes, "single_images": SINGLE_IMAGES in notes[0]},
        )
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
