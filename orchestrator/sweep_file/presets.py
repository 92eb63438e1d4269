"""Presets: files of changes to a sweep file, in `presets/` beside it.

Each line is what `--set` takes, `key.path: value`.
"""

from pathlib import Path

from orchestrator.sweep_file.schema import SweepFileError
from orchestrator.sweep_file.yaml_reader import dump_yaml, read_document

FOLDER = "presets"


def preset_overrides(folder: Path, name: str) -> list[str]:
    """The changes of a preset, as `--set` takes them.

    Args:
        folder: of the sweep file.

    Raises:
        SweepFileError: if there is no such preset, or it does not hold `key.path: value` alone.
    """
    path = folder / FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        there = f"Known: {known}." if known else f"There is none in {path.parent}."
        raise SweepFileError([f"--preset: there is no preset {name!r}. {there}"])
    document = read_document(path)
    changes = document.data
    if not document.problems and not (
        isinstance(changes, dict) and all(isinstance(key, str) for key in changes)
    ):
        document.add_problem((), "expected lines like data.train_images: 10000.")
    if document.problems:
        raise SweepFileError(document.sorted_problems())
    # YAML ends a lone value with dots.
    texts = {key: dump_yaml(value).removesuffix("...\n").strip() for key, value in changes.items()}
    return [f"{key}={text}" for key, text in texts.items()]
