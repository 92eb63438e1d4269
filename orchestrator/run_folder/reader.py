"""A trial as it was told, from its row and the run folder that the row is in."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.plan import Plan, Study, Trial, confirmation, make_plan
from orchestrator.run_folder.trials_table import cell_text, is_missing, option_column
from orchestrator.sweep_file import load_sweep
from orchestrator.sweep_file.grids_and_ranges import Range


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
    row = {str(name): cell for name, cell in rows.iloc[0].items()}
    return trial_of_row(make_plan(load_sweep(folder / "sweep.yaml")), row)


def trial_of_row(plan: Plan, row: Mapping[str, Any]) -> Trial:
    """The trial of a row of trials.csv.

    Raises:
        ValueError: if the plan has no such study, or a cell holds nothing that its range has.
    """
    again = row["phase"] == "confirmation"
    searched = str(row["confirms"] if again else row["trial_id"])
    study = plan.by_name.get(row["study"])
    if study is None:
        raise ValueError(f"sweep.yaml has no study {row['study']!r}, of {row['trial_id']}.")
    trial = study.trial(int(searched.rpartition("-")[2]), searched_values(study, row))
    return confirmation(trial, int(row["seed"])) if again else trial


def searched_values(study: Study, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the search chose for a trial, by dotted path, as its row of trials.csv has it.

    Raises:
        ValueError: if a cell holds nothing that its range has.
    """
    return study.values(partial(_chosen, row))


def _chosen(row: Mapping[str, Any], path: str, found: Range) -> Any:
    cell = _cell(row, option_column(path))
    if found.kind == "choice":
        same = [choice for choice in found.drawn if cell_text(choice) == cell_text(cell)]
        if not is_missing(cell):  # a column of 1 and 0.5 has 1.0 and 0.5
            same += [choice for choice in found.drawn if choice == cell]
    else:
        same = [] if is_missing(cell) else [int(cell) if found.kind == "int" else float(cell)]
    if not same:
        raise ValueError(
            f"trials.csv: in the row of {row['trial_id']}, {path} is "
            f"{cell_text(cell) or 'missing'}, expected {found}. "
            "Take the row out: its trial is run again when the sweep is resumed."
        )
    return same[0]


def _cell(row: Mapping[str, Any], column: str) -> Any:
    """A cell; of an option inside a method's option, which has the cell as JSON, that part."""
    if column in row or "." not in column:
        return row.get(column)
    outer, _, name = column.rpartition(".")
    around = _cell(row, outer)
    around = json.loads(around) if isinstance(around, str) else around
    return around.get(name) if isinstance(around, Mapping) else None
