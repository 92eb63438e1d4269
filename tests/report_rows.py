"""Small run folders for tests of reports, with figures that can be worked out by hand."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.run_folder.trials_table import (
    COLUMNS,
    TrialsTable,
    append_multiplications_per_class,
    write_images,
)

METHODS = ("dense", "vanilla", "random_channels", "l1_filter", "magnitude")
DENSE = 1e8


def trial(method: str, val_accuracy: float, share: float, **columns: Any) -> dict[str, Any]:
    """A row of trials.csv: a ten-class network, 100 M multiplications and 10 ms when dense."""
    usual = {
        "phase": "search",
        "method": method,
        "dataset": "digits",
        "backbone": "conv",
        "seed": 0,
        "status": "completed",
        "val_accuracy": val_accuracy,
        "multiplications": share * DENSE,
        "nonzero_multiplications": share * DENSE,
        "dense_multiplications": DENSE,
        "parameters": int(1e6 * share),
        "dense_parameters": 1_000_000,
        "latency_ms": 10 * share + 1,
        "dense_latency_ms": 10.0,
        "bit_operations": 1024 * share * DENSE,
        "dense_bit_operations": 1024 * DENSE,
        "mean_bits": 32.0,
        "dense_mean_bits": 32.0,
        "footprint_bytes": 4e6 * share,
        "dense_footprint_bytes": 4e6,
        "winograd_multiplications": 0.5 * share * DENSE,
        "dense_winograd_multiplications": 0.5 * DENSE,
        "duration_s": 30.0,
        "cell": "all",
        "dense_val_accuracy": 0.9,
        "classes": 10,
        "validation_images": 10_000,
        "fine_tuning_epochs": 5,
        "epochs_spent": 5,
        "started_at": "2026-11-21T10:00:00.000+00:00",
        "device": "cpu",
        "threads": 1,
        "torch_version": "2.14.1",
        f"{method}.keep_ratio": share,
    }
    return {**usual, **columns}


def failed(method: str, error: str, **columns: Any) -> dict[str, Any]:
    row = trial(method, 0, 0, status="failed", error=error, **columns)
    unknown = ("val_accuracy", "multiplications", "nonzero_multiplications", "latency_ms")
    return {**row, **dict.fromkeys(unknown)}


SMALL = [  # one cell; at half the cost l1_filter is ahead of random_channels by two points
    trial("dense", 0.9, 1.0),
    trial("vanilla", 0.80, 0.25),
    trial("vanilla", 0.85, 0.5),
    trial("random_channels", 0.70, 0.2),
    trial("random_channels", 0.86, 0.5),
    trial("l1_filter", 0.75, 0.2),
    trial("l1_filter", 0.88, 0.45),
    trial("l1_filter", 0.60, 0.3),
    trial("magnitude", 0.895, 1.0, nonzero_multiplications=0.3 * DENSE),
]


def again(number: int, seed: int, test_accuracy: float | None, **columns: Any) -> dict[str, Any]:
    """The confirmation of the trial in the place `number` of `SMALL`."""
    first = SMALL[number]
    confirms = f"{first['method']}-{number:03}"
    usual = {
        "trial_id": f"{confirms}-c{seed}",
        "phase": "confirmation",
        "confirms": confirms,
        "seed": seed,
        "test_accuracy": test_accuracy,
        "test_multiplications": first["multiplications"],
        "test_images": 10_000,
    }
    return {**first, **usual, **columns}


# The search would ship vanilla-002, random_channels-004 and l1_filter-006 at half of the cost.
CONFIRMED: list[dict[str, Any]] = [
    *SMALL,
    *(again(0, seed, value) for seed, value in ((1, 0.90), (2, 0.88), (3, 0.89))),
    *(again(2, seed, value) for seed, value in ((1, 0.86), (2, 0.84), (3, 0.85))),
    *(again(4, seed, value) for seed, value in ((1, 0.80), (2, 0.78), (3, 0.79))),
    *(again(6, seed, value) for seed, value in ((1, 0.83), (2, 0.81), (3, 0.82))),
    again(5, 1, 0.99),  # l1_filter's cheaper point: the search would not have taken it
    {**failed("l1_filter", "OSError: x"), **{"phase": "confirmation", "confirms": "l1_filter-005"}},
]


def run_folder(
    path: Path,
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str] = METHODS,
    objectives: Sequence[str] = ("multiplications",),
    name: str = "small",
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    sweep = {
        "name": name,
        "data": {"name": "digits", "train_images": "all"},
        "backbone": {"name": "conv", "depth": {"grid": [4, 8]}},
        "training": {"epochs": 20, "distillation": None},
        "fine_tuning": {"epochs": 5},
        "methods": {method: {} for method in methods},
        "seeds": [0],
        "objectives": {"val_accuracy": "maximize", **dict.fromkeys(objectives, "minimize")},
        "search": {"sampler": "tpe", "trials": 10, "seed": 0},
    }
    (path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    options = dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)
    table = TrialsTable(path / "trials.csv", [*COLUMNS, *options])
    for number, row in enumerate(rows):
        table.append({"trial_id": f"{row['method']}-{number:03}", **row})
    return path


def result_of(path: Path, rows: Sequence[dict[str, Any]], **sweep: Any) -> SweepResult:
    return SweepResult.read(run_folder(path, rows, **sweep))


def page_without_scripts(folder: Path) -> str:
    page = (folder / "report.html").read_text()
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def drawn_trials(folder: Path) -> list[dict[str, Any]]:
    """The records that the page's charts draw, from the page itself."""
    line = re.search(r"^const trials = (.*);$", (folder / "report.html").read_text(), re.MULTILINE)
    assert line is not None
    records: list[dict[str, Any]] = json.loads(line[1])
    return records


def folder_with_images(path: Path, with_tests: bool = True) -> Path:
    """rnp-000 is on the frontier and decides per image; so does rnp-001, which others beat."""
    rows = [
        trial("rnp", 0.88, 0.4, multiplications_p5=2e7, multiplications_p50=3e7, **{"rnp.p": -0.1}),
        trial("rnp", 0.60, 0.5, **{"rnp.p": -0.2}),
        trial("l1_filter", 0.8, 0.3),
    ]
    folder = run_folder(path, rows, methods=["rnp", "l1_filter"])
    write_images(folder, "rnp-000", ["face", "None"], [True, False], [50_000_000, 30_000_000])
    write_images(folder, "rnp-001", ["face", "None"], [True, True], [50_000_000, 50_000_000])
    costs = {"face": {"conv1": 3e7, "conv2": 2e7}, "None": {"conv1": 3e7}}
    for trial_id in ("rnp-000", "rnp-001", "l1_filter-002"):
        file = folder / "multiplications_per_class.csv"
        append_multiplications_per_class(file, trial_id, costs)
    if with_tests:
        file = folder / "test_multiplications_per_class.csv"
        tested = {"face": {"conv1": 3e7, "conv2": 2.5e7}, "None": {"conv1": 3e7, "conv2": 1e6}}
        append_multiplications_per_class(file, "rnp-000", tested)
    return folder
