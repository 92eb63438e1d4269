"""Remarks on each cost, from trials.csv alone."""

from __future__ import annotations

import math

from orchestrator.analysis.at_budget import HALF
from orchestrator.formatting import percent
from orchestrator.report.sweep_result import SweepResult


def remarks(result: SweepResult) -> dict[str, str]:
    """Remarks on each cost: its column -> a sentence or two."""
    return {
        "multiplications": "Counted from the operations that ran, for one image.",
        "nonzero_multiplications": _zeros_kept(result),
        "parameters": "Weights that the network stores, whether they are zero or not.",
        "latency_ms": _latency(result),
    }


def _zeros_kept(result: SweepResult) -> str:
    """What methods that zero weights in place still multiply."""
    completed = result.searched[result.searched["status"] == "completed"]
    sentences = []
    for method in result.methods:
        rows = completed[completed["method"] == method]
        held = rows[rows["nonzero_multiplications"] < 0.9 * rows["multiplications"]]
        if held.empty:
            continue
        run = (held["multiplications"] / held["dense_multiplications"]).median()
        nonzero = (held["nonzero_multiplications"] / held["dense_multiplications"]).median()
        ratio = (held["latency_ms"] / held["dense_latency_ms"]).median()
        latency = f" and took {ratio:.2f} times its latency" if math.isfinite(ratio) else ""
        sentences.append(
            f"{method} leaves its zeros in place and removes no channel: its median trial has "
            f"{percent(nonzero)} of the dense network's multiplications by weights that are not "
            f"zero, but ran {percent(run)} of them{latency}."
        )
    if not sentences:
        return (
            "No method here leaves many zeros in place, so these are the multiplications that ran."
        )
    return " ".join([*sentences, "Only hardware that skips zeros would gain from them."])


def _latency(result: SweepResult) -> str:
    """Whether fewer multiplications were faster."""
    caution = "Counted multiplications are not time: the batch, the threads and the machine matter."
    completed = result.searched[result.searched["status"] == "completed"]
    cheap = completed[completed["multiplications"] <= HALF * completed["dense_multiplications"]]
    ratios = (cheap["latency_ms"] / cheap["dense_latency_ms"]).dropna()
    if ratios.empty:
        return caution
    slower = int((ratios > 1).sum())
    return (
        f"{len(ratios)} trials at half of the dense multiplications or less took "
        f"{ratios.median():.2f} times the dense network's latency at batch 1 in the median "
        f"({ratios.min():.2f} to {ratios.max():.2f}); {slower or 'none'} of them "
        f"{'was' if slower < 2 else 'were'} slower than it. {caution}"
    )
