"""A trial as it was told, from the run folder that its row is in."""

from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.plan.studies import Trial, confirmation, studies
from orchestrator.sweep_file import load_sweep

FIXED_COLUMNS = {
    "data.name": "dataset",
    "backbone.name": "backbone",
    "backbone.depth": "depth",
    "backbone.dropout": "dropout",
}


def past_trial(folder: Path, trials: pd.DataFrame, trial_id: str) -> Trial:
    """The trial of a row.

    Args:
        folder: the run folder.
        trials: its trials.csv.

    Raises:
        ValueError: if there is no such row, or the folder's sweep.yaml has no such study.
    """
    rows = trials[trials["trial_id"] == trial_id]
    if rows.empty:
        raise ValueError(f"{folder} has no trial {trial_id!r}.")
    row = rows.iloc[0]
    if row["phase"] == "confirmation":
        return confirmation(past_trial(folder, trials, row["confirms"]), int(row["seed"]))
    by_name = {study.name: study for study in studies(load_sweep(folder / "sweep.yaml"))}
    study = by_name.get(row["study"])
    if study is None:
        raise ValueError(f"{folder}: sweep.yaml has no study {row['study']!r}, of {trial_id}.")
    number = int(trial_id.rpartition("-")[2])
    return study.trial(number, study.values(lambda path, searched: _value(row, path)))


def _value(row: pd.Series, path: str) -> Any:
    value = row[FIXED_COLUMNS.get(path, path.removeprefix("methods."))]
    return value.item() if hasattr(value, "item") else value
