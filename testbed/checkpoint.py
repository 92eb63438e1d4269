"""Checkpoint of a method, to resume from after its process was stopped: a file in the run folder.

The file is of one method, its options, seed, budget, data and dense network; another's is not
looked at. What goes on from it ends bit for bit where it would have ended without the stop.
"""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from testbed.data import Splits
from testbed.layer_sizes import untold_sizes
from testbed.method import Run
from testbed.network_file import load_resized
from testbed.tensor_file import DamagedFileError, checksum, read_tensors, write_tensors

log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one method's run; none is kept where the run has no folder."""

    def __init__(self, method: BaseModel, model: nn.Module, data: Splits, run: Run) -> None:
        """`model` is the dense network that the method was given."""
        self._run = run
        self._path: Path | None = run.folder and run.folder / "checkpoint.safetensors"
        self._of = _digest(method, model, data, run) if run.folder else ""
        self.notes: list[Any] = []
        """What the method wants to know again of its steps: kept with the network, as JSON."""

    def save(self, step: int, network: nn.Module) -> None:
        """Keeps `network` as it stands after `step`, in place of what was kept before."""
        if self._path is not None:
            epochs, reported = str(self._run.epochs_spent), json.dumps(self._run.reported)
            texts = {"of": self._of, "step": str(step), "epochs": epochs, "reported": reported}
            texts |= {"sizes": json.dumps(untold_sizes(network)), "notes": json.dumps(self.notes)}
            write_tensors(self._path, network.state_dict(), texts)

    def load(self, network: nn.Module) -> int:
        """Brings `network` and the run's budget to where they were kept.

        Args:
            network: as large as the one that was kept, or larger; its layers get the sizes of that.

        Returns:
            The step that was kept last; -1 if nothing was, or it was another run's or is damaged,
            of which there is a warning in the log.
        """
        if self._path is None:
            return -1
        try:
            tensors, texts = read_tensors(self._path)
        except FileNotFoundError:
            return -1
        except DamagedFileError as error:
            log.warning("%s The run starts anew.", error)
            return -1
        if texts["of"] != self._of:
            return -1
        if "notes" not in texts or tensors.keys() != network.state_dict().keys():
            return -1  # an older version's
        load_resized(network, tensors, json.loads(texts["sizes"]))
        self.notes = json.loads(texts["notes"])
        self._run.resume_after(int(texts["epochs"]), json.loads(texts["reported"]))
        return int(texts["step"])


def _digest(method: BaseModel, model: nn.Module, data: Splits, run: Run) -> str:
    made_by = {
        "method": f"{type(method).__qualname__} {method.model_dump_json()}",
        "seed": str(run.seed),
        "fine_tuning": run.fine_tuning.model_dump_json(),
        "data": data.fingerprint,
    }
    return checksum(model.state_dict(), made_by)
