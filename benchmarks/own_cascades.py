"""How long cascades of a sweep's own networks take to find, against reading what they are made of.

    python -m benchmarks.own_cascades [--json]

A run folder of 100 networks of one cell and seed, with logits of 5,000 validation images of 10
classes, as a report reads it: the networks' files are read, cascades of two and three of them are
tried with all thresholds, and those on the frontier are judged. The logits are drawn at random; a
network knows the more, the more it costs. One thread.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.analysis.cascade_decision import OwnCascades
from orchestrator.analysis.own_networks import own_networks
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.run_folder.logits import write_logits
from testbed.machine import set_threads

NETWORKS, IMAGES, CLASSES = 100, 5_000, 10
ROUNDS = 3
DENSE = 1e8
GOAL = Goal(at_most=3.0)


def sweep_of(folder: Path) -> SweepResult:
    """Writes the logits; the table of trials is in memory."""
    random = np.random.default_rng(0)
    labels = random.integers(CLASSES, size=IMAGES)
    rows: list[dict[str, Any]] = []
    for number in range(NETWORKS):
        logits = random.normal(size=(IMAGES, CLASSES))
        logits[np.arange(IMAGES), labels] += 1 + 2 * number / NETWORKS
        path = folder / "logits" / f"n{number}.safetensors"
        write_logits(path, torch.from_numpy(logits), torch.from_numpy(labels))
        cost = DENSE * (number + 1) / NETWORKS
        rows.append(
            {
                **{"trial_id": f"n{number}", "phase": "search", "status": "completed"},
                **{"method": "vanilla", "cell": "all", "seed": 0, "multiplications": cost},
                **{"dense_multiplications": DENSE, "latency_ms": 1.0, "dense_latency_ms": 1.0},
                **{"latency_ms_batch128": 1.0, "dense_latency_ms_batch128": 1.0},
            }
        )
    return SweepResult({"methods": {"vanilla": {}}}, pd.DataFrame(rows), (folder,))


def seconds(work: Callable[[], object]) -> float:
    """The least of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    options = arguments(__doc__).parse_args()
    set_threads(1)
    with TemporaryDirectory() as folder:
        result = sweep_of(Path(folder))
        reading = seconds(lambda: own_networks(result))
        whole = seconds(lambda: OwnCascades(result).shown())
    notes = {"reading the logits": f"{reading:.2f} s"}
    ratios = {"seconds_for_100_networks": whole, "over_reading_them": whole / reading}
    goals = {"seconds_for_100_networks": GOAL}
    show(Result("own_cascades", ratios, goals, notes), options.json)


if __name__ == "__main__":
    main()
