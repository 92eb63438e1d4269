"""A method that takes its time and keeps checkpoints, for sweeps that are to be disturbed."""

import copy
import time

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from testbed.checkpoint import Checkpoint
from testbed.data import Splits
from testbed.method import Run


class Fades(BaseModel):
    """Shrinks all weights a little in each of `steps`, and keeps what it has after each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: float = Field(gt=0, lt=1)
    steps: int = 5
    seconds: float = 0.2  # of a step

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        network = copy.deepcopy(model)
        checkpoint = Checkpoint(self, model, data, run)
        begun = checkpoint.load(network) + 1
        for step in range(begun, self.steps):
            time.sleep(self.seconds)
            with torch.no_grad():
                for weights in network.parameters():
                    weights.mul_(1 - self.by)
            run.report({"round": step, "begun_at": begun})
            checkpoint.save(step, network)
        return network
