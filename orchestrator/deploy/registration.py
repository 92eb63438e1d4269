"""An exported network as a version of a model in MLflow's registry."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.deploy.selection import Choice

if TYPE_CHECKING:
    from orchestrator.tracking.model_registry import ModelRegistry

TAGS = (  # columns of trials.csv
    *("trial_id", "method", "val_accuracy", "test_accuracy", "multiplications"),
    *("dense_multiplications", "parameters", "latency_ms"),
)


def registry(model: str, result: SweepResult, choice: Choice) -> "ModelRegistry":
    """MLflow's registry, found to have all that `register` needs; raises as `ModelRegistry`."""
    from orchestrator.run_folder.folder import sweep_id  # imports torch
    from orchestrator.tracking.model_registry import ModelRegistry

    folder, sweep = result.folders[0].resolve(), result.sweep["name"]
    return ModelRegistry(model, folder.parent, sweep, sweep_id(folder), choice.network)


def register(models: "ModelRegistry", exported: Path, result: SweepResult, choice: Choice) -> str:
    """Makes an exported folder a version; returns its number.

    Raises:
        ValueError: if MLflow does not take it.
    """
    from orchestrator.deploy.programs import BATCH_ONNX, ONNX  # imports torch

    row = result.by_id.loc[choice.network]
    tags = {name: row[name] for name in TAGS if pd.notna(row[name])}
    if choice.cascade is not None and choice.test is not None:
        own = choice.cascade
        tags = {
            "trial_id": choice.trial_id,
            "method": "cascade of the sweep's own networks",
            "val_accuracy": own.accuracy,
            "test_accuracy": choice.test.accuracy,
            "multiplications": own.multiplications,
            "dense_multiplications": row["dense_multiplications"],
        }
    tags["sweep"] = result.sweep["name"]
    why = choice.why if choice.test is None else f"{choice.why} {choice.test}"
    try:
        batches = exported / BATCH_ONNX  # its other program takes single images
        program = batches if batches.exists() else exported / ONNX
        return models.register(exported, program, tags, why)
    except Exception as error:  # of MLflow, of its database, of the network
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{exported} is written, but MLflow does not register it ({reason}). Give another "
            "folder to --export once it does."
        ) from error
