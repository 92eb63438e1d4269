"""Cascade network: a chain of networks in which the next one looks only where the last is unsure.

Its answer is the log-probabilities of the classes, averaged over the looks that an image got. In
training mode all look at every image, so that gradients reach them.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from baselines.runtime.image_hash import uniform_of_images
from testbed.inference_form import inference_form
from testbed.looks import Confidence, average, confidence_of, gathered, looked


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
        weights, thresholds = self.weights.tolist(), self.thresholds.tolist()
        answers, confidences = self._answered(0, None, images, 1.0)
        waiting, current = images, answers
        places: Tensor | None = None  # of those waiting; None: all
        for number, threshold in enumerate(thresholds, start=1):
            if len(images) == 1:  # half of the small operations, which take time too
                if confidences.item() >= threshold:
                    break
            else:
                rows = (confidences < threshold).nonzero().flatten()
                if len(rows) == 0:
                    break
                if len(rows) < len(waiting):
                    waiting, current = gathered(waiting, rows), current.index_select(0, rows)
                    places = rows if places is None else places.index_select(0, rows)
            current, confidences = self._answered(number, current, waiting, weights[number])
            answers = current if places is None else answers.index_copy(0, places, current)
        return answers

    def _answered(
        self, number: int, before: Tensor | None, images: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Answers (n, classes) after a look at images (n, C, H, W), and how sure they are, (n,).

        Args:
            before: the answers before it; None at the first look.
            weight: the share of the look's own log-probabilities.
        """
        logits = self.look(number, images)
        if self.confidence != "drawn":
            return looked(before, logits, weight, self.confidence)
        own = logits.log_softmax(dim=1)
        answers = own if before is None else average(before, own, weight)
        return answers, uniform_of_images(images, self.seed)

    def masked(self, images: Tensor) -> Tensor:
        """As `forward` in evaluation mode, with every look at all images."""
        return self._all_looks(images)[0]

    def decided(self, images: Tensor) -> Tensor:
        """How often each image is looked at, (n, 1) int64 (see `TellsDecisions`)."""
        return self._all_looks(images)[1][:, None]

    def _all_looks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (n, classes), and how many looks each image gets, (n,) int64."""
        answers = self.look(0, images).log_softmax(dim=1)
        unsure = torch.ones_like(answers[:, 0], dtype=torch.bool)  # len() would fix an export's n
        looks = unsure.long()
        for number, threshold in enumerate(self.thresholds, start=1):
            unsure = unsure & (self.confidences(answers, images) < threshold)
            looks = looks + unsure
            further = self.averaged(number, answers, self.look(number, images))
            answers = torch.where(unsure[:, None], further, answers)
        return answers, looks

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
