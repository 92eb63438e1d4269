"""What tests of networks that decide per image run under."""

from collections.abc import Iterator

import pytest
import torch

from testbed import compiled


@pytest.fixture(params=["compiled", "torch"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What uses it holds with the compiled operators, if they are built, and without."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "operators", lambda: None)
    elif compiled.operators() is None:
        pytest.skip("the compiled operators are not built")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
