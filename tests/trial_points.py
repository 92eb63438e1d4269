"""Completed trials as points of accuracy and cost, and the area that they dominate."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.run_folder.trials_table import COLUMNS

OBJECTIVES = {"val_accuracy": "maximize", "multiplications": "minimize"}
CHANCE = 0.1


def trials(points: Sequence[tuple[float, ...]], **columns: Any) -> pd.DataFrame:
    """Completed trials of a ten-class dense network of 100 multiplications and 10 ms.

    Args:
        points: (val_accuracy, multiplications) or (val_accuracy, multiplications, latency_ms) each.
        columns: what differs from that, a value for all or a list.
    """
    names = ("val_accuracy", "multiplications", "latency_ms")
    frame = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    frame["trial_id"] = [f"t{number:03}" for number in range(len(points))]
    for place, name in enumerate(names):
        frame[name] = [float(p[place]) if place < len(p) else 5.0 for p in points]
    usual = {
        "phase": "search",
        "status": "completed",
        "method": "l1_filter",
        "cell": "all",
        "dataset": "digits",
        "classes": 10,
        "dense_multiplications": 100.0,
        "dense_latency_ms": 10.0,
        "dense_parameters": 1000,
    }
    for name, value in {**usual, **columns}.items():
        frame[name] = value
    return frame.astype(COLUMNS)


def staircase_area(points: np.ndarray) -> float:
    """The area that (accuracy, cost share) points dominate, column by column of unique costs."""
    inside = [(cost, accuracy) for accuracy, cost in points if cost < 1 and accuracy > CHANCE]
    edges = [*sorted({cost for cost, _ in inside}), 1.0]
    area = 0.0
    for left, right in pairwise(edges):
        best = max(accuracy for cost, accuracy in inside if cost <= left)
        area += (right - left) * (best - CHANCE)
    return area
