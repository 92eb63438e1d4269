"""What the search chose for a trial, read back from its row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.plan import Study
from orchestrator.run_folder.reader import searched_values
from orchestrator.run_folder.trials_table import TrialsTable, option_column, read_trials
from orchestrator.sweep_file.grids_and_ranges import Condition, Range

SCOPE = ("methods", "own", "scope")


def study(**options: Any) -> Study:
    sections = {
        "data": {},
        "training": {"epochs": Range("int", (1, 3))},
        "methods": {"own": options},
    }
    sections["backbone"] = {"depth": Range("choice", (4, 6))}
    return Study("own-s0", "all", "own", 0, 10, sections)


def row(values: dict[str, Any], **cells: Any) -> dict[str, Any]:
    fixed = {"trial_id": "own-s0-000", "depth": 4, "training.epochs": 2}
    return fixed | {option_column(path): value for path, value in values.items()} | cells


@pytest.mark.parametrize("as_cell", [lambda v: v, lambda v: np.array([v])[0]])
@pytest.mark.parametrize(
    ("found", "value"),
    [
        (Range("uniform", (0.0, 1.0)), 0.25),
        (Range("int", (1, 9)), 4),
        (Range("choice", (1, 0.5)), 1),
        (Range("choice", (True, False, 1)), True),
        (Range("choice", ("a", "b")), "b"),
    ],
)
def test_a_cell_is_the_value_that_was_chosen(found: Range, value: Any, as_cell: Any) -> None:
    searched = study(ratio=found)
    values = searched_values(searched, row({"methods.own.ratio": as_cell(value)}))
    assert values == {"training.epochs": 2, "backbone.depth": 4, "methods.own.ratio": value}
    assert type(values["methods.own.ratio"]) is type(value)


@pytest.mark.parametrize("missing", [None, pd.NA, float("nan")])
def test_an_empty_cell_is_null_where_that_is_a_choice(missing: Any) -> None:
    chosen = {"methods.own.ratio": missing}
    searched = study(ratio=Range("choice", (0.5, None)))
    assert searched_values(searched, row(chosen))["methods.own.ratio"] is None
    for found in (Range("choice", (0.5, 1)), Range("uniform", (0.0, 1.0))):
        with pytest.raises(ValueError, match=r"own-s0-000, methods.own.ratio is missing, expected"):
            searched_values(study(ratio=found), row(chosen))


def test_what_was_not_searched_in_a_trial_is_not_among_its_values() -> None:
    when = (Condition("scope", SCOPE, ("layer",)),)
    searched = study(
        threshold=Range("uniform", (0.5, 3.0), when=when, otherwise=1.5),
        scope=Range("choice", ("global", "layer")),
    )
    for scope, expected in (("global", {}), ("layer", {"methods.own.threshold": 1.5})):
        chosen = {"methods.own.scope": scope, "methods.own.threshold": 1.5}
        found = searched_values(searched, row(chosen))
        assert found.items() - {("training.epochs", 2), ("backbone.depth", 4)} == {
            ("methods.own.scope", scope),
            *expected.items(),
        }


def test_a_value_inside_an_option_is_found_in_the_options_cell(tmp_path: Path) -> None:
    """As a table has it, whose columns are whole options."""
    searched = study(inner={"share": Range("uniform", (0.0, 1.0)), "rounds": 2})
    cells = row({}, **{"own.inner": {"share": 0.3, "rounds": 2}})
    table = TrialsTable(tmp_path / "trials.csv", list(cells))
    table.append(cells)
    (read,) = read_trials(table.path).to_dict("records")
    assert json.loads(read["own.inner"])["rounds"] == 2
    assert searched_values(searched, read)["methods.own.inner.share"] == 0.3
