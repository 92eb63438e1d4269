"""Cascade network: a chain of networks in which the next one looks only where the last is unsure.

Its answer is the log-probabilities of the classes, averaged over the looks that an image got. In
training mode all look at every image, so that gradients reach them.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from baselines.runtime.image_hash import uniform_of_images
from testbed import compiled
from testbed.inference_form import inference_form

Confidence = Literal["margin", "max_softmax"]


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
                    waiting, current = _gathered(waiting, rows), current.index_select(0, rows)
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
        operators = compiled.operators() if _allows_compiled(logits) else None
        if operators is not None and self.confidence != "drawn":
            answers, confidences = operators.answer(
                before, logits, weight, self.confidence == "margin"
            )
            return answers, confidences
        own = logits.log_softmax(dim=1)
        answers = own if before is None else average(before, own, weight)
        return answers, self.confidences(answers, images)

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


def average(before: Tensor, look: Tensor, weight: Tensor | float) -> Tensor:
    """Weighted geometric mean of probabilities, which are given and returned as logarithms.

    Args:
        before, look: (..., classes).
        weight: of `look`, from 0 to 1.
    """
    return torch.lerp(before, look, weight).log_softmax(dim=-1)


def confidence_of(answers: Tensor, confidence: Confidence) -> Tensor:
    """Confidence (n,) of log-probabilities (n, classes)."""
    if confidence == "max_softmax":
        return answers.amax(dim=1).exp()
    first, second = answers.topk(2, dim=1).values.exp().unbind(dim=1)
    return first - second


def _allows_compiled(logits: Tensor) -> bool:
    exported = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return logits.is_cpu and logits.shape[1] > 1 and not logits.requires_grad and not exported


def _gathered(images: Tensor, rows: Tensor) -> Tensor:
    """Those images, in the same layout: index_select alone gives up channels last."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return images.index_select(0, rows)
