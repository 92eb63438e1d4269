"""A user's own modules are found from one of them, however it imports them."""

import sys
from pathlib import Path

import pytest

from testbed.dense_store import DenseStore
from testbed.own_modules import own_modules

FILES = {
    "zoo_of_mine/__init__.py": "from .small import net",
    "zoo_of_mine/small.py": "from . import parts\nfrom zoo_of_mine.blocks.wide import make as net",
    "zoo_of_mine/parts.py": "import os.path, numpy as np",
    "zoo_of_mine/blocks/wide.py": "def make():\n    import helper_of_mine",
    "zoo_of_mine/unused.py": "",
    "helper_of_mine.py": "try:\n    import no_such_module.part\nexcept ImportError:\n    pass",
    "broken_of_mine.py": "print 1",
}
ALL = {
    *("zoo_of_mine", "zoo_of_mine.small", "zoo_of_mine.parts", "zoo_of_mine.blocks.wide"),
    "helper_of_mine",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_what_is_reexported_relative_absolute_or_imported_late_is_found(folder: Path) -> None:
    found = own_modules("zoo_of_mine")
    assert set(found) == ALL
    assert found["helper_of_mine"] == folder / "helper_of_mine.py"
    assert "zoo_of_mine.blocks" not in sys.modules and "helper_of_mine" not in sys.modules


def test_a_module_inside_a_package_brings_the_package(folder: Path) -> None:
    assert set(own_modules("zoo_of_mine.parts")) == ALL


def test_a_file_that_is_no_python_is_found_and_followed_no_further(folder: Path) -> None:
    assert set(own_modules("broken_of_mine")) == {"broken_of_mine"}


@pytest.mark.parametrize("name", ["json", "numpy", "torch.nn", "testbed.data", "sys", "nowhere"])
def test_what_is_installed_or_of_python_is_nobodys_own(name: str) -> None:
    assert own_modules(name) == {}


@pytest.mark.parametrize("edited", sorted(name for name in FILES if name.startswith("zoo")))
def test_an_edit_of_any_module_that_a_network_is_made_of_is_another_network(
    folder: Path, edited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"backbone": "zoo_of_mine:net"}
    before = DenseStore.key(spec)
    (folder / edited).write_text(FILES[edited] + "  # edited\n")
    assert (DenseStore.key(spec) != before) == (edited != "zoo_of_mine/unused.py")
    for name in [name for name in sys.modules if name.startswith("zoo_of_mine")]:
        monkeypatch.delitem(sys.modules, name)
