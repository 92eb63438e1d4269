"""Not written yet."""

from pathlib import Path


def write_report(folder: Path) -> None:
    """Placeholder until the report lands."""
