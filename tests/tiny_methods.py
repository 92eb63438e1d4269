"""What a user may bring that does nothing well, for tests of what runs it."""

import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from testbed.data import Splits
from testbed.method import Run


class Raises(BaseModel):
    """Fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        raise RuntimeError("as it was asked to")


class Sleeps(BaseModel):
    """Takes its time, after leaving a file that says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        assert run.folder is not None
        (run.folder.parents[1] / "asleep").touch()
        time.sleep(self.seconds)
        return model


def raises(*_: Any, **__: Any) -> None:
    """A data set or a backbone that cannot be made."""
    raise RuntimeError("as it was asked to")
