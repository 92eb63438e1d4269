"""Provenance of a sweep: its settings, its machines, the versions it ran with."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import duration, extent


def provenance(result: SweepResult) -> list[tuple[str, str]]:
    """Provenance of the sweep: (what, value)."""
    sweep, trials = result.sweep, result.trials
    facts = {
        "Data": _settings(sweep["data"]),
        "Validation images": extent(trials["validation_images"].dropna()),
        "Classes": extent(trials["classes"].dropna()),
        "Backbone": _settings(sweep["backbone"]),
        "Training": _settings(sweep["training"]),
        "Fine-tuning": _settings(sweep.get("fine_tuning", {})),
        "Objectives": _settings(sweep["objectives"]),
        "Search": _settings(sweep.get("search", {})),
        "Early stopping": _settings(sweep.get("early_stopping") or {}),
        "Seeds": ", ".join(map(str, sweep.get("seeds", []))),
        "Trials": f"{len(trials)}, {duration(trials['duration_s'].sum())} of work in total",
        "Hardware": _values(trials["device"]),
        "Threads a trial": _values(trials["threads"]),
        "torch": _values(trials["torch_version"]),
        "Code": _values(trials["code_version"]),
        "Started": _values(trials["started_at"].dropna().sort_values().head(1)),
    }
    return [(name, value) for name, value in facts.items() if value]


def _settings(section: Mapping[str, Any]) -> str:
    """conv, depth 4 | 6 | 8"""
    given = {name: value for name, value in section.items() if value is not None}
    return ", ".join(
        _option(value) if name == "name" else f"{name} {_option(value)}"
        for name, value in given.items()
    )


def _option(value: Any) -> str:
    """A value, a grid or a range of the sweep file."""
    if isinstance(value, Mapping) and set(value) == {"grid"}:
        return " | ".join(map(str, value["grid"]))
    if isinstance(value, Mapping):
        return "(" + _settings(value) + ")"
    return str(value)


def _values(column: pd.Series) -> str:
    return ", ".join(str(value) for value in column.dropna().unique())
