"""Run folders as a report reads them: the sweep files as resolved, and a row for every trial."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from orchestrator.analysis.asked_budget import BUDGET_OPTION, asked_budgets
from orchestrator.analysis.pareto import DATA, frontier, with_split
from orchestrator.analysis.seed_means import confirmed, repeated
from orchestrator.run_folder.trials_table import cell_text, option_column, read_trials
from orchestrator.sweep_file import SHARED
from orchestrator.sweep_file.grids_and_ranges import Range, Variable, find_variables
from orchestrator.sweep_file.yaml_reader import Key

IMAGES = "images/{}.csv"
OUT_OF = "run_folder"  # the column that says which folder a row is of, where there are several
Row = Mapping[Any, Any] | pd.Series
"""A row of trials.csv, by column."""


@dataclass(frozen=True)
class SweepResult:
    """What one run folder holds, or several together."""

    sweep: Mapping[str, Any]
    trials: pd.DataFrame
    folders: tuple[Path, ...] = ()
    apart: bool = False
    """Whether several folders do not compete, so that their cells have the sweeps' names."""

    @staticmethod
    def read(*folders: Path) -> "SweepResult":
        """
        Raises:
            FileNotFoundError: if one is no run folder.
            ValueError: if several had other objectives, so that no Pareto front holds them all.
        """
        sweeps = [_read_yaml(folder / "sweep.yaml") for folder in folders]
        tables = [read_trials(folder / "trials.csv") for folder in folders]
        if len(folders) == 1:
            return SweepResult(sweeps[0], tables[0], folders)
        shared = [[sweep.get(section) for section in SHARED] for sweep in sweeps]
        same = all(each == shared[0] for each in shared) and _of_same_dense_networks(tables)
        stacked = _stacked(folders, sweeps, tables, same)
        return SweepResult(_joined(sweeps), stacked, folders, not same)

    @property
    def objectives(self) -> dict[str, str]:
        return self.sweep["objectives"]

    @cached_property
    def searched(self) -> pd.DataFrame:
        """The trials of the search, in the order in which they ended."""
        return self.trials[self.trials["phase"] == "search"]

    @cached_property
    def data_of(self) -> dict[str, str]:
        """What each cell was judged on: data set, classes and images. Others do not compare."""
        rows = with_split(self.searched).groupby("cell")[DATA].first()
        return {str(cell): ", ".join(map(str, row)) for cell, row in rows.iterrows()}

    @cached_property
    def n_seeds(self) -> int:
        """How many seeds the search ran."""
        return int(self.searched["seed"].nunique())

    @cached_property
    def by_id(self) -> pd.DataFrame:
        """All trials, found by their names."""
        return self.trials.set_index("trial_id", drop=False)

    def row(self, trial_id: str) -> dict[Any, Any]:
        """A trial's row, by column."""
        return self.trials[self.trials["trial_id"] == trial_id].iloc[0].to_dict()

    @cached_property
    def methods(self) -> list[str]:
        """In the sweep file's order."""
        return list(dict.fromkeys([*self.sweep["methods"], *self.trials["method"]]))

    @cached_property
    def cells(self) -> list[str]:
        """The settings of the shared grid that have trials, depth=8 before depth=12."""
        return sorted(self.searched["cell"].unique(), key=natural)

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """The Pareto front of every method in every cell, as `pareto.frontier` has them."""
        return frontier(self.trials, self.objectives)

    @cached_property
    def confirmed(self) -> pd.DataFrame:
        """The confirmed points, as `confirmed` has them."""
        return confirmed(self.trials)

    @cached_property
    def repeated(self) -> pd.DataFrame:
        """Means over seeds, as `repeated` has them."""
        return repeated(self.trials)

    def in_order(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of cells and methods in the order of `cells` and `methods`, numbered anew."""
        places = {"cell": self.cells, "method": self.methods}
        return rows.sort_values(
            list(places),
            key=lambda column: column.map(places[str(column.name)].index),
            kind="stable",
            ignore_index=True,
        )

    def settings(self, row: Row) -> str:
        """The options by which a trial differs from others of its method: keep_ratio 0.52."""
        return ", ".join(
            f"{name.removeprefix(row['method'] + '.')} {_short(row[name])}"
            for name in self._varying[row["method"]]
            if not pd.isna(row[name])
        )

    def title(self, row: pd.Series) -> str:
        """A trial's name and its settings."""
        return ", ".join(filter(None, [row["trial_id"], self.settings(row)]))

    def file(self, row: pd.Series, place: str) -> Path:
        """A file of a trial's run folder.

        Args:
            place: its path in there, with `{}` for the trial's name.
        """
        return self._folder(row) / place.format(_own_name(row))

    def decides_per_image(self, row: pd.Series) -> bool:
        """Whether a trial's network has left what it spent on single images."""
        return self.file(row, IMAGES).exists()

    def images(self, row: pd.Series) -> pd.DataFrame:
        """Class, correct and multiplications of single images, of a trial that has left them."""
        return pd.read_csv(self.file(row, IMAGES), dtype={"class": str}, keep_default_na=False)

    def class_costs(self, row: pd.Series, name: str) -> pd.DataFrame:
        """What a trial's network spent: class, layer, multiplications; no row if that is unknown.

        Args:
            name: of the table in the run folder.
        """
        table = self._read_class_costs(self.file(row, name))
        return table[table["trial_id"] == _own_name(row)]

    def command(self, row: pd.Series) -> str:
        """The command that runs this trial again, and it alone, in a folder of its name.

        A conditional hyperparameter that the trial did not have keeps its range: the condition
        fails again.
        """
        folder, method = self._folder(row), str(row["method"])
        changes = {
            "name": f"{_own_name(row)}-again",
            "seeds": f"[{row['seed']}]",
            "confirm": "null",
        }
        for key, varied in self._varied[folder].items():
            if key[0] == "methods" and key[1] != method:
                continue
            path = ".".join(map(str, key[:3] if key[0] == "methods" else key))
            value = cell_text(row.get(option_column(path)))
            if value or not (isinstance(varied, Range) and varied.when):
                changes[path] = value or "null"
        said = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in changes.items()]
        file = shlex.quote(str(Path("runs", folder.name, "sweep.yaml")))
        only = f"--only {shlex.quote(method)}"
        return " ".join(["python -m orchestrator.trial", file, only, *said])

    def varied(self, row: pd.Series) -> dict[Key, Variable]:
        """The grids and ranges of the sweep file that a trial is of."""
        return self._varied[self._folder(row)]

    def _folder(self, row: pd.Series) -> Path:
        return Path(row[OUT_OF]) if OUT_OF in row else self.folders[0]

    @cached_property
    def _read_class_costs(self) -> Callable[[Path], pd.DataFrame]:
        """Reads a table once."""
        return cache(_read_class_costs)

    @cached_property
    def _varied(self) -> dict[Path, dict[Key, Variable]]:
        """The grids and ranges of each folder's sweep file."""
        found = {}
        for folder in self.folders:
            sweep = _read_yaml(folder / "sweep.yaml")
            sections = {name: sweep.get(name) for name in (*SHARED, "methods")}
            found[folder] = find_variables(sections)
        return found

    @cached_property
    def _varying(self) -> dict[str, list[str]]:
        """Method -> the columns of its options that are not the same in all its trials."""
        columns = [str(column) for column in self.trials.columns]
        return {
            str(method): [
                name
                for name in columns
                if name.startswith(f"{method}.") and rows[name].nunique(dropna=False) > 1
            ]
            for method, rows in self.trials.groupby("method")
        }


def _own_name(row: pd.Series) -> str:
    """A trial's name in its own run folder."""
    return str(row["trial_id"]).rpartition("/")[2]


def _read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _read_class_costs(path: Path) -> pd.DataFrame:
    """Class names as they are written, be they "1" or "None"."""
    if not path.exists():
        return pd.DataFrame(columns=["trial_id", "class", "layer", "multiplications"])
    texts = dict.fromkeys(("trial_id", "class", "layer"), str)
    missing = {"multiplications": [""]}  # of a row that was cut off
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)


def _joined(sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One sweep that has what all of them have; sections that differ are said to differ."""
    objectives = [sweep["objectives"] for sweep in sweeps]
    if any(each != objectives[0] for each in objectives):
        said = "; ".join(f"{sweep['name']}: {', '.join(sweep['objectives'])}" for sweep in sweeps)
        raise ValueError(f"expected sweeps of the same objectives, got {said}. Report each alone.")
    joined: dict[str, Any] = {"name": " + ".join(sweep["name"] for sweep in sweeps)}
    for section in (*SHARED, "objectives", "search", "confirm", "resources"):
        found = [sweep.get(section) or {} for sweep in sweeps]
        same = all(each == found[0] for each in found)
        joined[section] = found[0] if same else {"": "differs between the sweeps, see below"}
    joined["objectives"] = objectives[0]
    joined["methods"] = {name: {} for sweep in sweeps for name in sweep["methods"]}
    if budgets := sorted({each for sweep in sweeps for each in asked_budgets(sweep)}):
        options = {BUDGET_OPTION: {"grid": budgets}}  # for answers, which are of all methods
        joined["methods"] = dict.fromkeys(joined["methods"], options)
    joined["seeds"] = sorted({seed for sweep in sweeps for seed in sweep.get("seeds", [])})
    return joined


def _stacked(
    folders: Sequence[Path],
    sweeps: Sequence[Mapping[str, Any]],
    tables: Sequence[pd.DataFrame],
    same: bool,
) -> pd.DataFrame:
    """All rows, with names of their own.

    Args:
        same: whether methods of one cell compete, whichever sweep they are of.
    """
    parts = []
    for folder, sweep, table in zip(folders, sweeps, tables, strict=True):
        part = table.copy()
        part[OUT_OF] = str(folder)
        for column in ("trial_id", "confirms"):
            named = part[column].notna()
            part.loc[named, column] = f"{sweep['name']}/" + part.loc[named, column]
        if not same:
            part["cell"] = f"{sweep['name']}: " + part["cell"]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _of_same_dense_networks(tables: Sequence[pd.DataFrame]) -> bool:
    """Whether a dense network of one cell and seed is the same in all tables that have it."""
    figures = ["dense_multiplications", "dense_parameters", "dense_val_accuracy"]
    rows = pd.concat([table[["cell", "seed", "reward_images", *figures]] for table in tables])
    rows = rows[rows["reward_images"].fillna(0) == 0]  # others are judged on a part of the images
    return not (rows.groupby(["cell", "seed"])[figures].nunique() > 1).any(axis=None)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def natural(name: str) -> list[tuple[bool, float, str]]:
    """Sorts the numbers inside names as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(False, float(p), "") if p[:1].isdigit() else (True, 0.0, p) for p in parts]
