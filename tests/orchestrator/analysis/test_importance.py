"""The importance of searched options, where it is known beforehand."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from report_rows import page_without_scripts, result_of, trial

from orchestrator.analysis.importance import FEWEST_COMPLETED, option_importances
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report import write_report
from orchestrator.report.tables.search import importances_table

RANGES: dict[str, Any] = {
    "p": {"log_uniform": [-1.0, -0.01]},
    "k": {"int": [2, 16]},
    "prefixes": {"choice": ["sandwich", "widths"]},
}


def searched(
    path: Path,
    accuracy: Callable[[Mapping[str, Any]], float],
    ranges: Mapping[str, Any] = RANGES,
    n: int = 30,
) -> SweepResult:
    """A study of rnp whose options are drawn at random; each group adds as much to the cost."""
    generator = np.random.default_rng(3)
    rows = []
    for _ in range(n):
        tried = {
            "p": -float(np.exp(generator.uniform(np.log(0.01), 0.0))),
            "k": int(generator.integers(2, 17)),
            "prefixes": ["sandwich", "widths"][generator.integers(2)],
        }
        columns = {f"rnp.{name}": tried[name] for name in ranges}
        share = 0.05 * tried["k"]
        rows.append(trial("rnp", accuracy(tried), share, study="rnp-s0", **columns))
    result = result_of(path, rows, methods=["rnp"])
    sweep = yaml.safe_load((path / "sweep.yaml").read_text())
    sweep["methods"]["rnp"] = dict(ranges)
    (path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return SweepResult.read(*result.folders)


def by_option(found: pd.DataFrame, objective: str) -> dict[str, float]:
    rows = found[found["objective"] == objective]
    return dict(zip(rows["option"], rows["importance"], strict=True))


def test_an_option_that_decides_alone_explains_nearly_everything(tmp_path: Path) -> None:
    found = option_importances(searched(tmp_path, lambda tried: 0.5 + 0.1 * np.log10(-tried["p"])))
    accuracy = by_option(found, "val_accuracy")
    assert accuracy["rnp.p"] > 0.9
    assert sum(accuracy.values()) == pytest.approx(1)
    assert by_option(found, "multiplications")["rnp.k"] > 0.9, "the cost is that of the groups"
    assert found["tries"].unique().tolist() == [30]


def test_a_choice_may_be_what_matters(tmp_path: Path) -> None:
    result = searched(tmp_path, lambda tried: {"sandwich": 0.4, "widths": 0.8}[tried["prefixes"]])
    assert by_option(option_importances(result), "val_accuracy")["rnp.prefixes"] > 0.9


def test_the_table_has_a_row_for_each_option_and_a_column_for_each_objective(
    tmp_path: Path,
) -> None:
    result = searched(tmp_path, lambda tried: 0.5 + 0.1 * np.log10(-tried["p"]))
    table = importances_table(option_importances(result))
    assert table.header == (
        "method", "option", "studies", "tries of each", "val_accuracy", "multiplications"
    )  # fmt: skip
    rows = {row[1]: row for row in table.rows}
    assert rows.keys() == {"p", "k", "prefixes"}
    assert float(rows["p"][4]) > 0.9 > float(rows["p"][5])


def test_the_report_has_it_in_both_forms(tmp_path: Path) -> None:
    (folder,) = searched(tmp_path, lambda tried: 0.5 + 0.1 * np.log10(-tried["p"])).folders
    write_report(folder)
    page = page_without_scripts(folder)
    section = page[page.index("What the search found") :]
    assert "<h3>Importance of each option</h3>" in section
    text = (folder / "report.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| rnp | prefixes |"))
    assert len(line.split("|")) == 8


def constant(tried: Mapping[str, Any]) -> float:
    return 0.5


def test_an_objective_that_never_changes_has_no_importances(tmp_path: Path) -> None:
    found = option_importances(searched(tmp_path, constant))
    assert by_option(found, "val_accuracy") == {}
    assert by_option(found, "multiplications")["rnp.k"] > 0.9


@pytest.mark.parametrize(
    "less",
    [{"n": FEWEST_COMPLETED - 1}, {"ranges": {"p": RANGES["p"]}}],
    ids=["few tries", "one option"],
)
def test_where_there_is_nothing_to_tell_nothing_is_said(
    less: dict[str, Any], tmp_path: Path
) -> None:
    found = option_importances(searched(tmp_path, lambda tried: -tried["p"], **less))
    assert found.empty and importances_table(found).rows == []


def test_a_conditional_option_is_left_out(tmp_path: Path) -> None:
    """Tries whose condition failed have a value that need not be in its range, or none."""
    conditional = {"choice": ["sandwich"], "when": {"k": [2, 4]}, "otherwise": "widths"}
    ranges = RANGES | {"prefixes": conditional}
    found = option_importances(searched(tmp_path, lambda tried: -tried["p"], ranges))
    assert {*found["option"]} == {"rnp.p", "rnp.k"}


def test_studies_of_one_name_in_several_sweeps_are_not_mixed(tmp_path: Path) -> None:
    """What one searched need not be in the other's ranges."""
    accuracies = (lambda tried: 0.5 + 0.1 * np.log10(-tried["p"]), lambda tried: 0.03 * tried["k"])
    folders = [
        searched(tmp_path / name, accuracy).folders[0]
        for name, accuracy in zip("ab", accuracies, strict=True)
    ]
    sweep = yaml.safe_load((folders[0] / "sweep.yaml").read_text())
    sweep["methods"]["rnp"]["k"] = {"int": [2, 20]}
    (folders[0] / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    found = option_importances(SweepResult.read(*folders))
    of_p = found[(found["option"] == "rnp.p") & (found["objective"] == "val_accuracy")]
    assert [importance > 0.9 for importance in of_p["importance"]] == [True, False]


def test_without_optuna_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = searched(tmp_path, lambda tried: -tried["p"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert option_importances(result).empty
