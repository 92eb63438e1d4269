"""Cascade network: a chain of networks in which the next one looks only where the last is unsure.

Its answer is the log-probabilities of the classes, averaged over the looks that an image got. In
training mode all look at every image, so that gradients reach them.
"""

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from baselines.runtime.image_hash import uniform_of_images
from testbed.inference_form import inference_form
from testbed.looks import Confidence, average, confidence_of, gathered


class CascadeNetwork(nn.Module):
    """Networks in the order in which they look, and what decides who goes on to the next."""

    thresholds: Tensor
    """(looks - 1,) float32. An image goes on where the confidence so far is below."""
    weights: Tensor
    """(looks,) float32: the share of a look's own log-probabilities in the answer after it."""
    seed: Tensor
    """() int64, of the draws where confidence is drawn."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        confidence: Confidence | Literal["drawn"] = "margin",
        mirror: bool = False,
    ) -> None:
        """
        Args:
            networks: not copied; of the same inputs and outputs, logits.
            confidence: margin: of the two most probable classes; max_softmax: the most probable
                one's probability; drawn: from 0 to 1 at random, always the same for an image.
            mirror: whether the last network looks once more, at the mirrored image.
        """
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.confidence = confidence
        self.mirror = mirror
        looks = len(networks) + mirror
        self.register_buffer("thresholds", torch.full((looks - 1,), torch.inf))
        self.register_buffer("weights", torch.ones(looks))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    @property
    def looks(self) -> int:
        """How often an image is looked at, at most."""
        return len(self.networks) + self.mirror

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (n, classes) of images (n, C, H, W)."""
        return self.masked(images) if self.training else self.compacted(images)

    def compacted(self, images: Tensor) -> Tensor:
        """As `masked`, but each look is at the images alone that go on to it."""
        if len(images) == 1 and self.confidence != "drawn":
            return self._of_one(images)
        waiting = images
        current = answers = self.look(0, images).log_softmax(dim=1)
        places: Tensor | None = None  # of those waiting; None: all
        for number, threshold in enumerate(self.thresholds.tolist(), start=1):
            rows = (self.confidences(current, waiting) < threshold).nonzero().flatten()
            if len(rows) == 0:
                break
            if len(rows) < len(waiting):
                waiting, current = gathered(waiting, rows), current.index_select(0, rows)
                places = rows if places is None else places.index_select(0, rows)
            current = self.averaged(number, current, self.look(number, waiting))
            answers = current if places is None else answers.index_copy(0, places, current)
        return answers

    def _of_one(self, image: Tensor) -> Tensor:
        """As `compacted`, of (1, C, H, W): half of the small operations, which take time too."""
        weights = self.weights.tolist()
        answer = self.look(0, image).log_softmax(dim=1)
        for number, threshold in enumerate(self.thresholds.tolist(), start=1):
            first, second = answer.topk(2, dim=1).values[0].tolist()
            confidence = math.exp(first)
            if self.confidence == "margin":
                confidence -= math.exp(second)
            if confidence >= threshold:
                break
            own = self.look(number, image).log_softmax(dim=1)
            answer = average(answer, own, weights[number])
        return answer

    def masked(self, images: Tensor) -> Tensor:
        """As `forward` in evaluation mode, with every look at all images."""
        answers = self.look(0, images).log_softmax(dim=1)
        unsure = torch.ones_like(answers[:, 0], dtype=torch.bool)  # len() would fix an export's n
        for number, threshold in enumerate(self.thresholds, start=1):
            unsure = unsure & (self.confidences(answers, images) < threshold)
            further = self.averaged(number, answers, self.look(number, images))
            answers = torch.where(unsure[:, None], further, answers)
        return answers

    def look(self, number: int, images: Tensor) -> Tensor:
        """Logits (n, classes) float32 of a look, counted from 0."""
        if number == len(self.networks):
            return self.look(number - 1, images.flip(-1))
        logits: Tensor = self.networks[number](images)
        return logits.float()

    def averaged(self, number: int, answers: Tensor, logits: Tensor) -> Tensor:
        """The answers (n, classes) after a look, from those before it and what the look gave."""
        return average(answers, logits.log_softmax(dim=1), self.weights[number])

    def confidences(self, answers: Tensor, images: Tensor) -> Tensor:
        """(n,) from 0 to 1, of answers (n, classes)."""
        if self.confidence == "drawn":
            return uniform_of_images(images, self.seed)
        return confidence_of(answers, self.confidence)

    def inference_form(self, example: Tensor) -> Self:
        """The same cascade of networks that are each in the form in which they run best."""
        networks = [inference_form(network, example) for network in self.networks]
        form = type(self)(networks, self.confidence, self.mirror)
        for name, buffer in self.named_buffers(recurse=False):
            form.register_buffer(name, buffer)
        return form.eval()
