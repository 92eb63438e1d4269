"""A process that wants one dense network: `python dense_store_process.py STORE SECONDS LOG`.

Training takes SECONDS. What happens is written to LOG, a word a line.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from testbed.dense_store import DenseStore, History

SPEC = {"seed": 0}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def main(store: str, seconds: str, log: str) -> None:
    def note(line: str) -> None:
        with Path(log).open("a") as file:
            file.write(f"{line}\n")

    def train(network: nn.Module, checkpoint: Path) -> History:
        note("started")
        time.sleep(float(seconds))
        nn.init.ones_(network.get_parameter("weight"))
        note("ended")
        return [{"epoch": 1}]

    note("wants")
    network, record = DenseStore(Path(store)).get_or_train(SPEC, build, train)
    assert (network.get_parameter("weight") == 1).all()
    note("found" if record.found else "made")


if __name__ == "__main__":
    main(*sys.argv[1:])
