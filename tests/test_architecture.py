"""The rooms, and which way their imports point."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = {
    "orchestrator": {"orchestrator", "rnp", "baselines", "testbed"},
    "rnp": {"rnp", "testbed"},
    "baselines": {"baselines", "testbed"},
    "testbed": {"testbed"},
}
ORCHESTRATORS_OWN = {"ray", "optuna", "mlflow"}


# Rooms of orchestrator/, the lowest floor first. A room imports from floors below its own.
FLOORS = (
    ("formatting", "methods", "palette"),
    ("sweep_file",),
    ("plan",),
    ("run_folder",),
    ("analysis",),
    ("console", "jobs", "report", "search", "tracking"),
    ("deploy", "tuning"),
    ("driver",),
    ("commands",),
)
ADDRESSES = {"choose", "sweep", "trial", "report.__main__"}  # that people type


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are written from the top"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))}
IMPORTS = {
    module: {name for name in imported(path) if name in MODULES} - {module}
    for module, path in MODULES.items()
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    paths = [path for module, path in MODULES.items() if module.partition(".")[0] == room]
    assert paths
    for path in paths:
        names = {name.partition(".")[0] for name in imported(path)}
        assert names & set(ROOMS) <= ROOMS[room], path
        if room != "orchestrator":
            assert not names & ORCHESTRATORS_OWN, path


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


def test_the_orchestrators_rooms_import_from_floors_below() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for module, names in IMPORTS.items():
        for name in names:
            (top, _, upper), (below, _, lower) = module.partition("."), name.partition(".")
            pair = upper.partition(".")[0], lower.partition(".")[0]
            if {top, below} != {"orchestrator"} or "" in pair or pair[0] == pair[1]:
                continue
            if upper not in ADDRESSES and floor[pair[1]] >= floor[pair[0]]:
                wrong.append(f"{module} imports {name}")
    assert wrong == []
