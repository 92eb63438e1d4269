"""Which changes of a sweep file let its sweep be resumed."""

from pathlib import Path

import pytest
from sweep_files import SWEEP

from orchestrator.plan import Plan, make_plan
from orchestrator.plan.resume import changes
from orchestrator.sweep_file import load_sweep


def sweep(tmp_path: Path, *overrides: str) -> Plan:
    path = tmp_path / "my.yaml"
    path.write_text(SWEEP)
    return make_plan(load_sweep(path, overrides))


@pytest.mark.parametrize(
    "override",
    [
        "search.trials=30",
        "search.trials=3",
        "seeds=[0, 1]",
        "methods.thinet={keep_ratio: 0.5}",
        "resources.cpus=2",
        "backbone.depth={grid: [8, 4, 6]}",
        "backbone.dropout={grid: [0.0, 0.1, 0.2]}",
        "methods.vanilla.keep_ratio={grid: [0.75, 0.5, 0.25, 0.125]}",
    ],
)
def test_more_of_the_same_is_no_change_that_matters(override: str, tmp_path: Path) -> None:
    assert changes(sweep(tmp_path), sweep(tmp_path, override)) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs=21", ["training.epochs was 20, and is 21."]),
        (
            "backbone.depth=4",
            ["backbone.depth.grid was [4, 6, 8], and is not there.", "backbone.depth was"],
        ),
        ("backbone.depth={grid: [4, 6]}", ["backbone.depth.grid was [4, 6, 8], and is [4, 6]."]),
        (
            "methods.l1_filter.keep_ratio={uniform: [0.3, 0.95]}",
            ["methods.l1_filter.keep_ratio.uniform was [0.2, 0.95], and is [0.3, 0.95]."],
        ),
        ("methods.magnitude.rounds=2", ["methods.magnitude.rounds was 3, and is 2."]),
        ("seeds=[1]", ["seeds was [0], and is [1]."]),
        ("search.sampler=random", ["search.sampler was tpe, and is random."]),
        ("search.seed=1", ["search.seed was 0, and is 1."]),
        ("objectives.parameters=minimize", ["objectives.parameters was not there, and is"]),
        ("data.train_images=100", ["data.train_images was all, and is 100."]),
    ],
)
def test_what_matters_is_said(override: str, said: list[str], tmp_path: Path) -> None:
    found = changes(sweep(tmp_path), sweep(tmp_path, override))
    assert any(text.startswith(start) for start in said for text in found), found


def test_only_what_matters_is_said(tmp_path: Path) -> None:
    overrides = ("resources.cpus=2", "search.trials=20", "search.seed=1", "seeds=[0, 1]")
    assert changes(sweep(tmp_path), sweep(tmp_path, *overrides)) == ["search.seed was 0, and is 1."]


def test_another_number_of_tries_makes_another_grid(tmp_path: Path) -> None:
    grid = "search.sampler=grid"
    (said,) = changes(sweep(tmp_path, grid), sweep(tmp_path, grid, "search.trials=12"))
    assert said == "search.trials was 10, and is 12. That makes other grids, of other points."


def test_a_method_that_is_gone_matters(tmp_path: Path) -> None:
    more = sweep(tmp_path)
    less = make_plan(more.sweep.with_method("dense"))
    (said,) = changes(more, less)[:1]
    assert said.startswith("methods.vanilla was {keep_ratio: ")
    assert changes(less, more) == []
