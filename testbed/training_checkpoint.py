"""Checkpoint of a training, to resume from after its process was stopped: one file, as of an epoch.

A training that goes on ends bit for bit where it would have ended without the stop.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from testbed.tensor_file import DamagedFileError, checksum, read_tensors, write_tensors

EVERY_S = 20.0  # what a stop may cost, and an epoch
SHARE = 50  # and so many times as long as a save takes, which is then 2 % of the training

log = logging.getLogger(__name__)


class TrainingCheckpoint:
    """The state of one training: network, optimiser, random numbers, and what was reported."""

    def __init__(
        self,
        path: Path | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generators: Mapping[str, torch.Generator],
        settings: Mapping[str, str],
    ) -> None:
        """
        Args:
            path: the file; None keeps nothing.
            model: before its first step. That, and `settings`, are what the file must be of.
            generators: of all random numbers that the training draws, by names of ours.
        """
        self.reported: list[dict[str, float]] = []
        """What the epochs so far have reported, one each."""
        self._path = path
        self._model = model
        self._optimizer = optimizer
        self._generators = generators
        self._of = checksum(model.state_dict(), settings) if path else ""
        self._saved_at, self._pause_s = time.monotonic(), EVERY_S

    def load(self) -> None:
        """Brings everything to where it was kept; does nothing if nothing was, or if it was of
        another training or is damaged, of which there is a warning in the log."""
        if self._path is None:
            return
        try:
            tensors, texts = read_tensors(self._path)
        except FileNotFoundError:
            return
        except DamagedFileError as error:
            log.warning("%s The training starts anew.", error)
            return
        if texts.get("of") != self._of:
            return
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition("/")
            parts[part][own] = tensor
        self._model.load_state_dict(parts["model"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, own = name.partition("/")
            state.setdefault(int(number), {})[own] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        for name, generator in self._generators.items():
            generator.set_state(parts["random"][name])
        self.reported = json.loads(texts["reported"])

    def epoch_ended(self, report: Mapping[str, float]) -> None:
        """Keeps the state, in place of what was kept before, if that was some time ago."""
        self.reported.append(dict(report))
        begun = time.monotonic()
        if self._path is None or begun - self._saved_at < self._pause_s:
            return
        tensors = {f"model/{name}": tensor for name, tensor in self._model.state_dict().items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{number}/{name}": tensor
                for name, tensor in state.items()
                if tensor is not None
            }
        for name, generator in self._generators.items():
            tensors[f"random/{name}"] = generator.get_state()
        texts = {"of": self._of, "reported": json.dumps(self.reported)}
        write_tensors(self._path, tensors, texts)
        self._saved_at = time.monotonic()
        self._pause_s = max(EVERY_S, SHARE * (self._saved_at - begun))
