"""Looks at an image by several networks: how sure an answer is, which images another look gets, and
how the looks are averaged."""

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from testbed import compiled

Confidence = Literal["margin", "max_softmax"]
WEIGHTS = torch.linspace(0, 1, 11)
"""Of a look in the average, from which the best is taken."""


def average(before: Tensor, look: Tensor, weight: Tensor | float) -> Tensor:
    """Weighted geometric mean of probabilities, which are given and returned as logarithms.

    Args:
        before, look: (..., classes).
        weight: of `look`, from 0 to 1.
    """
    return torch.lerp(before, look, weight).log_softmax(dim=-1)


def fitted_weight(before: Tensor, look: Tensor, labels: Tensor) -> float:
    """The weight of `look` in the average of least cross-entropy.

    Args:
        before, look: (n, classes) log-probabilities.
        labels: (n,).
    """
    if len(labels) == 0:
        return 1.0
    each = average(before, look, WEIGHTS.view(-1, 1, 1)).transpose(1, 2)  # (weights, classes, n)
    losses = F.nll_loss(each, labels.expand(len(WEIGHTS), -1), reduction="none").sum(dim=1)
    return WEIGHTS[losses.argmin()].item()


def confidence_of(answers: Tensor, confidence: Confidence) -> Tensor:
    """Confidence (n,) of log-probabilities (n, classes)."""
    if confidence == "max_softmax":
        return answers.amax(dim=1).exp()
    first, second = answers.topk(2, dim=1).values.exp().unbind(dim=1)
    return first - second


def looked(
    before: Tensor | None, logits: Tensor, weight: float, confidence: Confidence
) -> tuple[Tensor, Tensor]:
    """Answers (n, classes) after a look, log-probabilities, and how sure they are, (n,).

    Args:
        before: the answers before it; None at the first look.
        logits: (n, classes), of the look.
        weight: of the look, from 0 to 1.
    """
    if (operators := _operators_for(logits)) is not None:
        answers, confidences = operators.answer.default(
            before, logits, weight, confidence == "margin"
        )
        return answers, confidences
    own = logits.log_softmax(dim=1)
    answers = own if before is None else average(before, own, weight)
    return answers, confidence_of(answers, confidence)


def _operators_for(logits: Tensor) -> Any:
    exported = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if exported or not logits.is_cpu or logits.shape[1] < 2 or logits.requires_grad:
        return None
    return compiled.operators()


def gathered(images: Tensor, rows: Tensor) -> Tensor:
    """Those images, in the same layout: index_select alone gives up channels last."""
    if images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return images.index_select(0, rows)
