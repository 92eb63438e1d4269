"""The sweep file: what it may hold, and how it is read, checked and written."""

from orchestrator.sweep_file.loading import load_sweep
from orchestrator.sweep_file.schema import (
    SHARED,
    EarlyStopping,
    Resources,
    Search,
    Sweep,
    SweepFileError,
)

__all__ = [
    "SHARED",
    "EarlyStopping",
    "Resources",
    "Search",
    "Sweep",
    "SweepFileError",
    "load_sweep",
]
