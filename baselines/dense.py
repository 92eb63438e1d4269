"""The dense network, fine-tuned: what every pruned network is to be compared with.

It removes nothing. It gets the fine-tuning that all methods get, so that no pruned network is ahead
of it merely because it was trained for longer. Its output runs all the multiplications.
"""

import copy

from pydantic import BaseModel, ConfigDict
from torch import nn

from testbed.data import Splits
from testbed.method import Run


class Dense(BaseModel):
    """No options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A fine-tuned copy of `model` (see `PruningMethod`)."""
        network = copy.deepcopy(model).to(run.device)
        run.fine_tune(network, data)
        return network
