"""Thresholds of a cascade, and the weights of its looks, chosen on images for a budget.

The budget is spent: but for one image's look, the mean cost on those images comes to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from testbed.looks import Confidence, average, confidence_of, fitted_weight

TRIED = 200  # combinations of thresholds; where images are few, all there are


@dataclass(frozen=True)
class Decisions:
    """What a cascade decides by, and what came of it on the images that it was chosen on."""

    thresholds: tuple[float, ...]
    """One fewer than looks: an image goes on where its confidence is below."""
    weights: tuple[float, ...]
    """Of each look in the answer after it; of the first 1."""
    reached: tuple[float, ...]
    """Share of the images that come to each look."""
    correct: int
    """Images that were classified right."""
    cross_entropy: float
    """Of the answers, summed over the images."""

    def cost(self, costs: Sequence[float]) -> float:
        """Mean cost of an image, where a look costs `costs`."""
        return sum(share * cost for share, cost in zip(self.reached, costs, strict=True))


def chosen_decisions(
    looks: Tensor,
    labels: Tensor,
    costs: Sequence[float],
    budget: float,
    confidence: Confidence = "margin",
    averages: bool = True,
) -> Decisions:
    """The decisions of the most right answers among those whose mean cost is the budget.

    Of equally right ones those of the least cross-entropy. Thresholds lie halfway between two
    images' confidences. All but the last are searched over, at most `TRIED` in all; the last one
    spends what is left. A look's weight is what gives the images that come to it the least
    cross-entropy.

    Args:
        looks: (looks, n, classes) log-probabilities that each look gives.
        labels: (n,).
        costs: of each look at an image.
        budget: mean cost of an image.
        averages: whether answers are averages; else they are the last look's alone.

    Raises:
        ValueError: if the budget is below the first look's cost.
    """
    if budget < costs[0]:
        raise ValueError(f"Expected a budget of {costs[0]:g} or more, the first look's cost.")
    search = _Search(looks, labels, costs, confidence, averages)
    left = (budget - costs[0]) * len(labels)
    return search.from_look(0, torch.arange(len(labels)), looks[0], left)


class _Search:
    """Depth first: each threshold in turn, for those images that come to it."""

    def __init__(
        self,
        looks: Tensor,
        labels: Tensor,
        costs: Sequence[float],
        confidence: Confidence,
        averages: bool,
    ) -> None:
        self._looks, self._labels, self._costs = looks, labels, costs
        self._confidence, self._averages = confidence, averages

    @cached_property
    def _tried(self) -> int:
        """Values of each threshold that is searched over."""
        return max(2, int(TRIED ** (1 / max(1, len(self._looks) - 2))))

    def from_look(self, number: int, rows: Tensor, answers: Tensor, left: float) -> Decisions:
        """What is best from a look on, for the images `rows` that come to it.

        Args:
            answers: (len(rows), classes) after the look.
            left: cost that may still be spent, on all of them.
        """
        labels = self._labels[rows]
        if number == len(self._looks) - 1:
            return self._ended(answers, labels)
        confidences = confidence_of(answers, self._confidence)
        tries = [
            self._with_threshold(number, threshold, confidences, rows, answers, left)
            for threshold in self._thresholds(number, confidences, left)
        ]
        return max(tries, key=lambda tried: (tried.correct, -tried.cross_entropy))

    def _with_threshold(
        self,
        number: int,
        threshold: float,
        confidences: Tensor,
        rows: Tensor,
        answers: Tensor,
        left: float,
    ) -> Decisions:
        unsure = confidences < threshold
        on, before = rows[unsure], answers[unsure]
        look, labels = self._looks[number + 1][on], self._labels[on]
        weight = fitted_weight(before, look, labels) if self._averages else 1.0
        after = average(before, look, weight)
        rest = self.from_look(number + 1, on, after, left - len(on) * self._costs[number + 1])
        stayed = self._ended(answers[~unsure], self._labels[rows[~unsure]])
        return Decisions(
            (threshold, *rest.thresholds),
            (1.0, weight, *rest.weights[1:]),
            (len(rows) / len(self._labels), *rest.reached),
            stayed.correct + rest.correct,
            stayed.cross_entropy + rest.cross_entropy,
        )

    def _ended(self, answers: Tensor, labels: Tensor) -> Decisions:
        """Of images that are looked at no more."""
        return Decisions(
            (),
            (1.0,),
            (len(labels) / len(self._labels),),
            int((answers.argmax(dim=1) == labels).sum()),
            F.nll_loss(answers, labels, reduction="sum").item(),
        )

    def _thresholds(self, number: int, confidences: Tensor, left: float) -> list[float]:
        """Those that spend what is left, and no more, if the later looks do their part."""
        costs, n = self._costs[number + 1 :], len(confidences)
        most = min(n, int(left / costs[0] + 1e-9))
        least = most if len(costs) == 1 else min(most, int(left / sum(costs)))
        numbers = torch.linspace(least, most, min(self._tried, most - least + 1)).round().long()
        ordered = confidences.sort().values
        return [_between(ordered, count) for count in numbers.unique().tolist()]


def _between(ordered: Tensor, count: int) -> float:
    """What so many of the ascending confidences are below, unless some of them are alike."""
    if count == 0:
        return -torch.inf
    if count == len(ordered):
        return torch.inf
    return ((ordered[count - 1] + ordered[count]) / 2).item()
