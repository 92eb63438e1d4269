"""Environments: the Markov decision processes that a decision network learns in.

An episode is one image's way through the backbone: at every conv that can be pruned it shows what
reaches the conv and waits for an action; at its end stands the image's loss. Episodes are played a
batch at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rnp.execution.decision import Run
from rnp.execution.masked_run import MaskedRun
from rnp.execution.routed_run import RoutedRun
from rnp.prefix_cost import Deciding, backbone_multiplications
from testbed.data import Splits, normalise
from testbed.machine import Precision
from testbed.prediction import autocast, memory_format_for


class Episodes(Run, Protocol):
    """Episodes of n images side by side: observe, act, observe, ..., then the losses."""

    def fork(self) -> "Episodes":
        """The same episodes once more, as far as they have come; each goes on by itself."""
        ...

    @property
    def losses(self) -> Tensor:
        """Each image's own loss, (n,) float32, once `observe` has given None."""
        ...


class Environment(Protocol):
    """Where episodes come from."""

    n_images: int
    device: torch.device

    @property
    def backbone_images(self) -> float:
        """Images that went through the backbone so far, in full passes."""
        ...

    def start(self, images: Tensor) -> Episodes:
        """Episodes of the images of these numbers, (n,) int64 on the CPU."""
        ...


class BackboneEnvironment:
    """Every episode is a forward pass of a training image, augmented anew."""

    def __init__(
        self,
        network: Deciding,
        data: Splits,
        generator: torch.Generator,
        device: torch.device,
        precision: Precision,
    ) -> None:
        """
        Args:
            network: on `device`, in evaluation mode.
            generator: of the augmentation, on the CPU.
            precision: of the backbone's matrix products.
        """
        self.network = network
        self.n_images = len(data.train)
        self.device = device
        self.precision = precision
        self.multiplications = 0
        """That its episodes made in the backbone so far, as if nothing was skipped."""
        self.until = _multiplications_until(network, data)
        """Of an image, before each node of the flow and after the last."""
        self._images = data.train.to(device)
        self._data = data
        self._layout = memory_format_for(network, data, device)
        self._generator = generator

    @property
    def backbone_images(self) -> float:
        return self.multiplications / self.until[-1]

    def start(self, images: Tensor) -> "BackboneEpisodes":
        data, batch = self._data, self._images.select(images.to(self.device))
        pixels = data.augmented(batch, self._generator)
        inputs = normalise(pixels, data.mean, data.std, memory_format=self._layout)
        return BackboneEpisodes(self, self.network.started(inputs), batch.labels)


@dataclass(frozen=True)
class BackboneEpisodes:
    """A run of a batch through the backbone, without gradients, that ends in its losses."""

    environment: BackboneEnvironment
    run: MaskedRun | RoutedRun
    labels: Tensor

    def observe(self) -> Tensor | None:
        environment, before = self.environment, self.run.position
        with torch.no_grad(), autocast(environment.precision, environment.device):
            features = self.run.observe()
        made = environment.until[self.run.position] - environment.until[before]
        environment.multiplications += len(self.labels) * made
        return features

    def act(self, actions: Tensor) -> None:
        self.run.act(actions)

    def fork(self) -> "BackboneEpisodes":
        return replace(self, run=self.run.fork())

    @property
    def losses(self) -> Tensor:
        return F.cross_entropy(self.run.logits.float(), self.labels, reduction="none")


def _multiplications_until(network: Deciding, data: Splits) -> list[int]:
    """Of an image, with all channels, in the modules before each node of the flow, and in all.

    Those of a module that runs several times are shared out evenly.
    """
    by_layer = backbone_multiplications(network, data)
    modules = [
        str(node.target) if node.op == "call_module" else None for node in network.flow.nodes
    ]
    each = [by_layer.get(name, 0) // modules.count(name) if name else 0 for name in modules]
    return list(accumulate(each, initial=0))


def batches(n_images: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers of images, (size,) int64, for ever: each image once before any comes again."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n_images, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
