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


class FailsOnce(BaseModel):
    """Fails, but not where it has failed before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        assert run.folder is not None
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            (run.folder / "failed").touch(exist_ok=False)
        except FileExistsError:
            return model
        raise RuntimeError("as it was asked to, once")


class Sleeps(BaseModel):
    """Takes its time the first time, after leaving a file that says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        assert run.folder is not None
        try:
            (run.folder.parents[1] / "asleep").touch(exist_ok=False)
        except FileExistsError:
            return model
        time.sleep(self.seconds)
        return model


def raises(*_: Any, **__: Any) -> None:
    """A data set or a backbone that cannot be made."""
    raise RuntimeError("as it was asked to")
