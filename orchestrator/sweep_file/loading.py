"""How a sweep file is read and checked."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.sweep_file.schema import Sweep, SweepFileError
from orchestrator.sweep_file.yaml_reader import read_document, read_override


def load_sweep(path: Path, overrides: Sequence[str] = (), data_root: Path | None = None) -> Sweep:
    """Reads and checks a sweep file.

    Args:
        overrides: `key.path=value`, values in YAML, as `--set` has them.
        data_root: where data sets lie; None leaves the data sets themselves unchecked.

    Raises:
        SweepFileError: with every mistake there is.
    """
    document = read_document(path)
    sweep = None
    if isinstance(document.data, dict):
        for number, override in enumerate(overrides):
            read_override(document, override, number)
        # Imports torch, for the options' models: two seconds that an unreadable file saves.
        from orchestrator.sweep_file.sections import resolved_sweep

        sweep = resolved_sweep(document, path.stem, data_root)
    elif not document.problems:
        got = "an empty file" if document.data is None else repr(document.data)[:40]
        document.add_problem((), f"expected sections like {{name: value}}, got {got}.")
    if sweep is None or document.problems:
        raise SweepFileError(document.sorted_problems())
    return sweep
