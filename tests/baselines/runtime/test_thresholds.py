"""The search for a cascade's decisions, against every one that there is."""

import math

import pytest
import torch
from torch import Tensor

from baselines.runtime.thresholds import chosen_decisions
from testbed.looks import WEIGHTS, average, confidence_of, fitted_weight


def drawn(looks: int, n: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Log-probabilities (looks, n, classes) that get better from look to look; labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(looks, n, classes, generator=generator)
    for look in range(looks):
        logits[look, torch.arange(n), labels] += 1.0 + look
    return logits.log_softmax(dim=2), labels


def played(looks: Tensor, labels: Tensor, thresholds: tuple[float, ...]) -> tuple[int, list[int]]:
    """Image by image: how many answers are right, and how many images come to each look."""
    correct, reached = 0, [0] * len(looks)
    for image, label in enumerate(labels.tolist()):
        for number, look in enumerate(looks):
            reached[number] += 1
            first, second, *_ = sorted(look[image].exp().tolist(), reverse=True)
            if number == len(thresholds) or first - second >= thresholds[number]:
                correct += int(look[image].argmax() == label)
                break
    return correct, reached


def every_threshold(look: Tensor) -> list[float]:
    """One between any two images' confidences, and those below and above all."""
    ordered = confidence_of(look, "margin").sort().values
    return [-math.inf, *((ordered[1:] + ordered[:-1]) / 2).tolist(), math.inf]


@pytest.mark.parametrize("budget", [1.0, 1.7, 3.0, 5.5])
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_at_the_budget_is_better(budget: float, seed: int) -> None:
    looks, labels = drawn(2, 20, seed)
    costs = [1.0, 4.0]
    tries = [played(looks, labels, (threshold,)) for threshold in every_threshold(looks[0])]
    affordable = [(correct, on) for correct, (_, on) in tries if 20 + 4 * on <= 20 * budget]
    _, most = max(affordable, key=lambda each: each[1])
    found = chosen_decisions(looks, labels, costs, budget, averages=False)
    assert found.correct == max(correct for correct, on in affordable if on == most)
    assert found.reached == (1.0, most / 20)
    assert played(looks, labels, found.thresholds)[0] == found.correct


@pytest.mark.parametrize("budget", [1.2, 2.5, 4.0, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_two_thresholds_at_the_budget_are_better(budget: float, seed: int) -> None:
    looks, labels = drawn(3, 12, seed)
    costs, n = [1.0, 2.0, 5.0], 12
    best = -1
    for first in every_threshold(looks[0]):
        tries = [played(looks, labels, (first, second)) for second in every_threshold(looks[1])]
        left = [
            (n * budget - n - 2 * on - 5 * further, correct) for correct, (_, on, further) in tries
        ]
        affordable = [each for each in left if each[0] >= 0]
        if not affordable:
            continue
        unspent, correct = min(affordable)
        if unspent < 2 + 5:  # else another image could have had both looks
            best = max(best, correct)
    found = chosen_decisions(looks, labels, costs, budget, averages=False)
    assert found.correct == best
    correct, reached = played(looks, labels, found.thresholds)
    assert correct == found.correct
    assert tuple(each / n for each in reached) == found.reached


def test_a_budget_for_all_looks_sends_every_image_through_all() -> None:
    looks, labels = drawn(3, 10, 0)
    found = chosen_decisions(looks, labels, [1, 2, 3], 6, averages=False)
    assert found.reached == (1, 1, 1) and found.thresholds == (math.inf, math.inf)
    assert found.correct == int((looks[2].argmax(dim=1) == labels).sum())


def test_a_budget_below_the_first_look_is_refused() -> None:
    looks, labels = drawn(2, 10, 0)
    with pytest.raises(ValueError, match="budget of 2 or more"):
        chosen_decisions(looks, labels, [2, 3], 1.9)


@pytest.mark.parametrize("confidence", ["margin", "max_softmax"])
@pytest.mark.parametrize("looks", [2, 3, 4])
def test_the_budget_is_met_on_other_images_like_those(looks: int, confidence: str) -> None:
    given, labels = drawn(looks, 15_000, 0)
    others, other_labels = drawn(looks, 15_000, 1)
    costs, budget = [0.12, 0.41, 1.0, 1.0][:looks], 0.35
    found = chosen_decisions(given, labels, costs, budget, confidence)  # type: ignore[arg-type]
    assert found.cost(costs) == pytest.approx(budget, rel=1e-3)
    answers, waiting = others[0], torch.ones(len(other_labels), dtype=torch.bool)
    spent = costs[0]
    for number, threshold in enumerate(found.thresholds, 1):
        waiting = waiting & (confidence_of(answers, confidence) < threshold)  # type: ignore[arg-type]
        further = average(answers, others[number], found.weights[number])
        answers = torch.where(waiting[:, None], further, answers)
        spent += costs[number] * waiting.double().mean().item()
    assert spent == pytest.approx(budget, rel=0.02)
    right = (answers.argmax(dim=1) == other_labels).double().mean().item()
    assert right == pytest.approx(found.correct / len(labels), abs=0.01)


def test_images_that_are_equally_sure_stay_together_and_within_the_budget() -> None:
    looks, labels = drawn(2, 1, 0)
    looks, labels = looks.expand(-1, 30, -1), labels.expand(30)
    found = chosen_decisions(looks, labels, [1, 2], 2.0)
    assert found.cost([1, 2]) <= 2.0 and found.reached[1] == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_weight_is_the_one_of_least_cross_entropy(seed: int) -> None:
    (before, look), labels = drawn(2, 40, seed)

    def loss(weight: float) -> float:
        mixed = [
            [(1 - weight) * a + weight * b for a, b in zip(one, two, strict=True)]
            for one, two in zip(before.tolist(), look.tolist(), strict=True)
        ]
        return sum(
            math.log(sum(map(math.exp, row))) - row[label]
            for row, label in zip(mixed, labels.tolist(), strict=True)
        )

    expected = min(WEIGHTS.tolist(), key=loss)
    assert fitted_weight(before, look, labels) == pytest.approx(expected)


def test_a_look_that_is_wrong_gets_no_weight_and_one_that_knows_gets_all() -> None:
    (before, _), labels = drawn(2, 500, 0)
    known = (20.0 * torch.nn.functional.one_hot(labels, 3)).log_softmax(dim=1)
    assert fitted_weight(before, known.roll(1, 1), labels) == 0.0
    assert fitted_weight(before, known, labels) == 1.0
    assert fitted_weight(before[:0], known[:0], labels[:0]) == 1.0
