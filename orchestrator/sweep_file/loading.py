"""How a sweep file is read and checked."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.sweep_file.presets import preset_overrides
from orchestrator.sweep_file.schema import Sweep, SweepFileError
from orchestrator.sweep_file.yaml_reader import read_document, read_override


def load_sweep(
    path: Path,
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    presets: Sequence[str] = (),
) -> Sweep:
    """Reads and checks a sweep file.

    Args:
        overrides: `key.path=value`, values in YAML, as `--set` has them.
        presets: names of files of such, in `presets/` beside the sweep file. They come first, and
            their names become part of the sweep's.
        data_root: where data sets lie; None leaves the data sets themselves unchecked.

    Raises:
        SweepFileError: with every mistake there is.
    """
    document = read_document(path)
    sweep = None
    if isinstance(document.data, dict):
        given = [(f"--preset {p}:", o) for p in presets for o in preset_overrides(path.parent, p)]
        given += [("--set", override) for override in overrides]
        for number, (option, override) in enumerate(given):
            read_override(document, override, number, option)
        # Imports torch, for the options' models: two seconds that an unreadable file saves.
        from orchestrator.sweep_file.sections import resolved_sweep

        sweep = resolved_sweep(document, "_".join([path.stem, *presets]), data_root)
    elif not document.problems:
        got = "an empty file" if document.data is None else repr(document.data)[:40]
        document.add_problem((), f"expected sections like {{name: value}}, got {got}.")
    if sweep is None or document.problems:
        raise SweepFileError(document.sorted_problems())
    return sweep
