"""A method that takes its time and keeps checkpoints, for sweeps that are to be disturbed."""

import copy
import os
import time
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from testbed import measurement
from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run

# As in `conftest`, for drivers and workers: they are to be disturbed while they prune.
measurement.measure_latency = partial(measurement.measure_latency, seconds=0.01)

STEP_S = "step_s"
"""The file beside the folder of runs that says how many seconds a step takes, else none."""
PROCESS = "process-"
"""How the file in a trial's folder begins that is there while a process prunes; its id follows."""


class Fades(BaseModel):
    """Shrinks all weights a little in each of `steps`, and keeps what it has after each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: float = Field(gt=0, lt=1)
    steps: int = 5

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        network = copy.deepcopy(model)
        assert run.folder is not None
        run.folder.mkdir(parents=True, exist_ok=True)
        pruning = run.folder / f"{PROCESS}{os.getpid()}"
        pruning.touch()
        pause = run.folder.parents[3] / STEP_S
        checkpoint = Checkpoint(self, model, data, run)
        begun = checkpoint.load(network) + 1
        for step in range(begun, self.steps):
            time.sleep(float(pause.read_text()) if pause.exists() else 0.0)
            with torch.no_grad():
                for weights in network.parameters():
                    weights.mul_(1 - self.by)
            run.report({"round": step, "begun_at": begun})
            checkpoint.save(step, network)
        pruning.unlink()
        return network
