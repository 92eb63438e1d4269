"""What the tests of sweep files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """Loads a text as my.yaml in the working folder."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str | bytes, *overrides: str, data_root: Path | None = None) -> Sweep:
        Path("my.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_sweep(Path("my.yaml"), overrides, data_root)

    return load_text


@pytest.fixture
def problems(load: Callable[..., Sweep]) -> Callable[..., list[str]]:
    """The problems of a text as my.yaml."""

    def refused(*arguments: Any, **keywords: Any) -> list[str]:
        with pytest.raises(SweepFileError) as caught:
            load(*arguments, **keywords)
        return caught.value.problems

    return refused
