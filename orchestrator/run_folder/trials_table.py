"""`trials.csv`: one row a trial, appended the moment the trial ends.

A row is one write at the end of the file, so a crash costs at most the row being written, and the
thousandth row costs what the first did. Reading leaves a row out that was cut off. An empty cell
means missing; booleans are `true` and `false`, lists and mappings JSON, floats keep every digit.

The same conventions serve the run folder's other tables: `frontier.csv`,
`multiplications_per_class.csv`, `test_multiplications_per_class.csv` and `images/TRIAL_ID.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from orchestrator.run_folder.atomic_files import append_whole, write_atomically

STRING, FLOAT = "string", "float64"
INTEGER, BOOLEAN = "Int64", "boolean"  # pandas' own types, since NumPy's hold no missing value

COLUMNS: dict[str, str] = {
    "trial_id": STRING,
    "phase": STRING,  # search, confirmation
    "confirms": STRING,  # the trial_id that a confirmation runs again
    "method": STRING,
    "dataset": STRING,
    "backbone": STRING,
    "depth": INTEGER,
    "dropout": FLOAT,
    "seed": INTEGER,
    "status": STRING,  # completed, stopped_early, failed, stopped (by a signal)
    "train_accuracy": FLOAT,  # accuracies are fractions
    "val_accuracy": FLOAT,
    "val_accuracy_before_finetuning": FLOAT,
    "test_accuracy": FLOAT,  # filled once, at the end; see `frontier.to_be_tested`
    "multiplications": FLOAT,  # per image: mean and percentiles over the validation images
    "multiplications_p5": FLOAT,
    "multiplications_p50": FLOAT,
    "multiplications_p95": FLOAT,
    "dense_multiplications": FLOAT,
    "nonzero_multiplications": FLOAT,
    "parameters": INTEGER,
    "sparsity": FLOAT,
    "latency_ms": FLOAT,  # batch 1, the median
    "latency_ms_batch128": FLOAT,
    "dense_latency_ms": FLOAT,
    "dense_latency_ms_batch128": FLOAT,
    "duration_s": FLOAT,
    "error": STRING,  # its first line says what went wrong
    "test_multiplications": FLOAT,  # their mean over the test images, filled with test_accuracy
    "test_images": INTEGER,
    "multiplications_per_class": STRING,  # true class -> mean, as JSON; of validation images
    # What the report needs beside these:
    "cell": STRING,  # the shared settings of the grid, "depth=4 dropout=0.1"; "all" without a grid
    "study": STRING,  # the Optuna study that proposed it
    "dense_val_accuracy": FLOAT,  # of the dense network it started from, on the same images
    "dense_parameters": INTEGER,
    "kept_whole": STRING,  # conv and linear layers that lost no outputs beside others, as JSON
    "classes": INTEGER,  # 1 / classes is chance, the hypervolume's reference
    "validation_images": INTEGER,  # how fine a difference in val_accuracy can be
    "reward_images": INTEGER,  # validation images that a method learnt from, beside those
    "budget_missed": FLOAT,  # multiplications over those asked for, less 1; empty within 1 %
    "fine_tuning_epochs": INTEGER,  # the budget
    "epochs_spent": INTEGER,  # backbone epochs used, those inside the method included
    "q_learning_epochs": FLOAT,  # passes beside them, over the number of training images: to learn
    "reward_epochs": FLOAT,  # decisions from, to find out rewards,
    "statistics_epochs": FLOAT,  # and for statistics of channels, attention learnt for it included
    "training_epochs": INTEGER,  # of all networks that the method trained, in sum; with the dense
    "training_multiplications": FLOAT,  # one's, if it starts from that. Those of forward passes
    "latency_ms_iqr": FLOAT,  # the spread: between the quartiles
    "latency_ms_batch128_iqr": FLOAT,
    # Costs on machines of other kinds, and the dense network's (see `testbed.special_costs`):
    "bit_operations": FLOAT,  # per image
    "dense_bit_operations": FLOAT,
    "mean_bits": FLOAT,  # of the layers' weights and inputs
    "dense_mean_bits": FLOAT,
    "footprint_bytes": FLOAT,
    "dense_footprint_bytes": FLOAT,
    "winograd_multiplications": FLOAT,  # per image
    "dense_winograd_multiplications": FLOAT,
    "started_at": STRING,  # UTC, ISO 8601
    "device": STRING,
    "threads": INTEGER,
    "torch_version": STRING,
    "code_version": STRING,
}


HELD_BY_COLUMNS = {  # options outside the methods that have a fixed column
    "data.name": "dataset",
    "backbone.name": "backbone",
    "backbone.depth": "depth",
    "backbone.dropout": "dropout",
}


def option_column(path: str) -> str:
    """The column of an option, by its dotted path in the sweep file."""
    return HELD_BY_COLUMNS.get(path, path.removeprefix("methods."))


def table_columns(
    methods: Mapping[str, type[BaseModel]], varied: Iterable[str] = ()
) -> tuple[str, ...]:
    """The header of a sweep's trials.csv, known before the first trial.

    Args:
        methods: the sweep's methods, each with the model of its options; every option becomes a
            column `METHOD.OPTION`, in their order.
        varied: dotted paths outside the methods that the sweep varies and no fixed column holds,
            such as `training.learning_rate`.
    """
    options = [
        f"{name}.{option}" for name, model in methods.items() for option in model.model_fields
    ]
    return (*COLUMNS, *options, *varied)


class TrialsTable:
    """A table of trials in a CSV file, open for more."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Makes the file, or resumes it after cutting off a row that a crash left unfinished.

        Columns that the file lacks are added to it, empty; those that it has beyond are kept.
        """
        self.path = path
        self.columns = tuple(columns)
        if not path.exists():
            write_atomically(path, _line(self.columns))
            return
        cells = _cells(path)
        self.columns += tuple(str(name) for name in cells if name not in self.columns)
        _replace(path, cells.reindex(columns=self.columns, fill_value=""))

    def append(self, row: Mapping[str, object]) -> None:
        """Adds one finished trial; columns it does not name stay empty.

        Raises:
            ValueError: if the row has a column that the table has not.
        """
        if surplus := sorted(set(row) - set(self.columns)):
            raise ValueError(f"{self.path.name} has no column {', '.join(surplus)}.")
        append_whole(self.path, _line([row.get(column) for column in self.columns]))

    def fill(self, cells: Mapping[str, Mapping[str, object]]) -> None:
        """Writes further cells into rows that are there; every other cell stays as it is.

        Args:
            cells: trial_id -> column -> value.

        Raises:
            ValueError: if a trial_id has no row.
        """
        table = _cells(self.path).set_index("trial_id", drop=False)
        if unknown := sorted(set(cells) - set(table.index)):
            raise ValueError(f"{self.path} has no trial {', '.join(unknown)}.")
        for trial_id, values in cells.items():
            for column, value in values.items():
                table.loc[trial_id, column] = cell_text(value)
        _replace(self.path, table)

    def read(self) -> pd.DataFrame:
        """All rows so far; see `read_trials`."""
        return read_trials(self.path)


def read_trials(path: Path) -> pd.DataFrame:
    """A trials.csv or frontier.csv, typed by `COLUMNS`; options get the type all their values have.

    A last row that was cut off is left out, and fixed columns that the file lacks are added empty.
    """
    frame = _read(path, dtype=COLUMNS, na_values=[""], dtype_backend="numpy_nullable")
    absent = {name: kind for name, kind in COLUMNS.items() if name not in frame}
    floats = {str(name): FLOAT for name in frame.select_dtypes("Float64")}  # as in COLUMNS
    return frame.reindex(columns=[*frame, *absent]).astype(absent | floats)


def keep_rows(path: Path, column: str, wanted: Callable[[str], bool]) -> None:
    """Takes the rows out of a table that are not wanted, and a last one that was cut off.

    Args:
        path: a table, or none, which stays as it is.
        wanted: told the row's cell of that column.
    """
    if path.exists():
        table = _cells(path)
        _replace(path, table.loc[[wanted(cell) for cell in table[column]]])


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes a whole table at once, by the conventions of trials.csv."""
    rows = (_line(row) for row in frame.itertuples(index=False, name=None))
    write_atomically(path, b"".join([_line(frame.columns), *rows]))


def append_multiplications_per_class(
    path: Path, trial_id: str, per_class: Mapping[str, Mapping[str, float]]
) -> None:
    """Adds one trial to a table of trial_id, class, layer, multiplications.

    Args:
        per_class: class name -> layer -> mean multiplications over the class's images; summed over
            the layers they are the network's.
    """
    if not path.exists():
        write_atomically(path, _line(("trial_id", "class", "layer", "multiplications")))
    lines = [
        _line((trial_id, name, layer, multiplications))
        for name, layers in per_class.items()
        for layer, multiplications in layers.items()
    ]
    append_whole(path, b"".join(lines))


def write_images(
    folder: Path,
    trial_id: str,
    classes: Sequence[str],
    correct: Sequence[bool],
    multiplications: Sequence[float],
) -> None:
    """Writes `images/TRIAL_ID.csv`, for a method that decides per image.

    Args:
        folder: the run folder.
        classes: (n,) the true class's name of every validation image, in the split's order.
        correct: (n,) whether it was classified rightly.
        multiplications: (n,) what was spent on it.
    """
    images = {"class": classes, "correct": correct, "multiplications": multiplications}
    path = folder / "images" / f"{trial_id}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame(images).reset_index(), path)


def cell_text(value: Any) -> str:
    """One cell: what `read_trials` turns back into the value."""
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)


def is_missing(value: object) -> bool:
    """Whether a value is what an empty cell stands for."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _line(values: Iterable[object]) -> bytes:
    """One row of CSV, quoted where commas, quotes or line breaks ask for it."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([cell_text(value) for value in values])
    return text.getvalue().encode()


def _replace(path: Path, table: pd.DataFrame) -> None:
    """Writes a whole table of `_cells`, unless it is the same already."""
    content = table.to_csv(index=False, lineterminator="\n").encode()
    if content != path.read_bytes():
        write_atomically(path, content)


def _cells(path: Path) -> pd.DataFrame:
    """The cells of a table as they are written, without a cut-off last row."""
    return _read(path, dtype=str)


def _read(path: Path, **options: Any) -> pd.DataFrame:
    """A table without a cut-off last row, by pandas, which would fill a row that lacks cells.

    Raises:
        ValueError: if a row has not a cell for each column; names it.
    """
    content = path.read_bytes()
    text = content[: _end_of_last_row(content)].decode()
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # an error may pass its 128 KiB
    widths = [len(row) for row in csv.reader(io.StringIO(text, newline=""))]
    for number, width in enumerate(widths):
        if width != widths[0]:
            raise ValueError(
                f"{path}, row {number}: damaged, expected {widths[0]} cells, got {width}. "
                "Take the row out: its trial is run again when the sweep is resumed."
            )
    return pd.read_csv(io.StringIO(text, newline=""), keep_default_na=False, **options)


def _end_of_last_row(content: bytes) -> int:
    """Where the last complete row ends: after a line break that stands outside quotes."""
    end = position = quotes = 0
    for line in io.BytesIO(content):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end
