"""A user's own modules: what a module imports that is neither installed nor of Python."""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

NOBODYS = {"testbed", *sys.stdlib_module_names}
_INSTALLED = {"site-packages", "dist-packages"}
_PYTHON = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def own_modules(name: str) -> dict[str, Path]:
    """The user's modules that importing `name` runs, itself and its packages among them -> files.

    They are read, not run: an import inside a function counts, one of a name that is worked out at
    run time does not. This project's `testbed` is left out, as it is no user's.
    """
    found: dict[str, Path] = {}
    to_read = [name]
    while to_read:
        module = to_read.pop()
        for part in _with_packages(module):
            if part in found or part.partition(".")[0] in NOBODYS:
                continue
            if (spec := _spec(part)) is None or not _is_own(spec):
                continue
            found[part] = Path(str(spec.origin))
            if found[part].suffix == ".py":
                to_read += _imports(part, spec)
    return dict(sorted(found.items()))


def _with_packages(name: str) -> Iterator[str]:
    """a.b.c -> a, a.b, a.b.c."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, found without running anything; None if it is nowhere in files."""
    top, *inner = name.split(".")
    found = (finder.find_spec(top, None) for finder in sys.meta_path)
    spec = next((spec for spec in found if spec is not None), None)
    for part in inner:
        if spec is None:
            break
        # By its last name alone: a whole one has Python look at packages that are not imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    return spec


def _is_own(spec: ModuleSpec) -> bool:
    file = Path(spec.origin or "")
    return (
        file.is_file()
        and _INSTALLED.isdisjoint(file.parts)
        and not any(map(file.is_relative_to, _PYTHON))
    )


def _imports(name: str, spec: ModuleSpec) -> Iterator[str]:
    """All that may be a module of what a file imports."""
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    try:
        tree = ast.parse(Path(str(spec.origin)).read_bytes())
    except SyntaxError:  # a file that an import left out
        return
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            relative = "." * statement.level + (statement.module or "")
            source = resolve_name(relative, package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in statement.names)
