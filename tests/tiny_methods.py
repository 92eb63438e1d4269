"""What a user may bring that does nothing well, for tests of what runs it."""

import copy
import os
import time
from typing import Any

import ray
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run


class Raises(BaseModel):
    """Fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        raise RuntimeError("as it was asked to")


class Refuses(BaseModel):
    """Can do nothing with any network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        raise ValueError("not with this network")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        raise ValueError("not with this network")


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


def fails_on_images(*_: Any, **__: Any) -> nn.Module:
    """A backbone that can be made and traced, but not run on images of 8 x 8 pixels."""
    convs = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 9)
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8, 10))


def raises(*_: Any, **__: Any) -> None:
    """A data set or a backbone that cannot be made."""
    raise RuntimeError("as it was asked to")


class Steps(BaseModel):
    """Takes steps of a moment each, adds 1 to some weights and keeps a checkpoint at every one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    seconds: float
    together: int
    """The first step waits for so many trials to have begun."""

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        assert run.folder is not None
        log = run.folder.parents[1] / "steps" / f"{run.folder.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        while len(list(log.parent.iterdir())) < self.together:
            time.sleep(0.1)
        network = copy.deepcopy(model)
        checkpoint = Checkpoint(self, model, data, run)
        for step in range(checkpoint.load(network) + 1, self.steps):
            with torch.no_grad():
                next(network.parameters()).add_(1)
            time.sleep(self.seconds)
            with log.open("a") as file:
                node = ray.get_runtime_context().get_node_id()
                file.write(f"{step} {os.getpid()} {node}\n")
            checkpoint.save(step, network)
        return network
