"""The Markov decision processes that a decision network learns in.

An episode is one image's way through the backbone: at every conv that can be pruned it shows what
reaches the conv and waits for an action; at its end stands the image's loss. Episodes are played a
batch at a time.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from rnp.prefix_run import PrefixRun
from rnp.runtime import RuntimeNetwork
from testbed.data import Images, Splits, augment, normalise
from testbed.machine import Precision
from testbed.prediction import autocast, memory_format_for


class Episodes(Protocol):
    """Episodes of n images side by side: observe, act, observe, ..., then the losses."""

    def observe(self) -> Tensor | None:
        """Features of the next step's states, (n, C) float32; None once the episodes are over."""
        ...

    def act(self, actions: Tensor) -> None:
        """Takes an action in each episode, (n,) int64 from 0."""
        ...

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
    backbone_images: float
    """Images that went through the backbone so far, in full passes."""

    def start(self, images: Tensor) -> Episodes:
        """Episodes of the images of these numbers, (n,) int64 on the CPU."""
        ...


class ImagePreparation:
    """Makes network inputs of training images: augmented, normalised, laid out, on the device."""

    def __init__(self, network: RuntimeNetwork, data: Splits, device: torch.device) -> None:
        self.data = data
        self.layout = memory_format_for(network, data, device)
        self._images = Images(data.train.pixels.to(device), data.train.labels.to(device))

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (n, C, H, W) and labels (n,) of the images of these numbers."""
        batch = self._images.select(images.to(self._images.labels.device))
        pixels = augment(batch.pixels, self.data.augmentation, generator)
        mean, std = self.data.mean, self.data.std
        return normalise(pixels, mean, std, memory_format=self.layout), batch.labels


class BackboneEnvironment:
    """Every episode is a forward pass of a training image, augmented anew."""

    def __init__(
        self,
        network: RuntimeNetwork,
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
        self.n_images = len(data.train)
        self.device = device
        self.backbone_images = 0.0
        self._network = network
        self._prepare = ImagePreparation(network, data, device)
        self._generator = generator
        self._precision = precision

    def start(self, images: Tensor) -> "BackboneEpisodes":
        inputs, labels = self._prepare(images, self._generator)
        self.backbone_images += len(images)
        run = PrefixRun(self._network, self._network.flow, inputs)
        return BackboneEpisodes(run, labels, self._precision)


class BackboneEpisodes:
    """A run of a batch through the backbone, without gradients, that ends in its losses."""

    def __init__(self, run: PrefixRun, labels: Tensor, precision: Precision) -> None:
        self._run = run
        self._labels = labels
        self._precision = precision

    def observe(self) -> Tensor | None:
        with torch.no_grad(), autocast(self._precision, self._labels.device):
            return self._run.observe()

    def act(self, actions: Tensor) -> None:
        self._run.act(actions)

    def fork(self) -> "BackboneEpisodes":
        return BackboneEpisodes(self._run.fork(), self._labels, self._precision)

    @property
    def losses(self) -> Tensor:
        return F.cross_entropy(self._run.logits.float(), self._labels, reduction="none")


def batches(n_images: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers of images, (size,) int64, for ever: each image once before any comes again."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n_images, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
