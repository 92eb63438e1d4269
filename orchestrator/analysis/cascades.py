"""Cascades of a sweep's own networks: what two or three of them reach, one after the other.

Nothing is trained or run: every trial has left its logits of the validation images. Networks are
combined, and thresholds chosen, on one half of these images; accuracy and cost are of the other. An
image goes on to the next network where the margin between the two most probable classes is below a
threshold; the answer is the mean of the log-probabilities so far.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.pareto import TRADE, non_dominated
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.run_folder.logits import read_logits
from testbed.stratified import draw

LOGITS = "logits/{}.safetensors"
MOST_COMBINED = 14  # networks of a cell and seed: those on their own frontier
THRESHOLDS = 20  # tried for each network but the last, at even steps of the images
MOST_SHOWN = 12  # cascades of a cell and seed
STREAM = 3  # keeps this draw apart from others

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Networks:
    """Networks that were measured on the same images, the cheapest first."""

    trial_ids: list[str]
    costs: Floats
    """Multiplications of an image."""
    answers: Floats
    """(networks, n, classes) log-probabilities."""
    labels: NDArray[np.int64]

    def of_images(self, places: NDArray[np.bool_]) -> "_Networks":
        return _Networks(self.trial_ids, self.costs, self.answers[:, places], self.labels[places])

    def of_networks(self, places: Sequence[int]) -> "_Networks":
        ids = [self.trial_ids[place] for place in places]
        return _Networks(ids, self.costs[places], self.answers[places], self.labels)

    def alone(self) -> pd.DataFrame:
        """Accuracy and cost of each."""
        accuracies = (self.answers.argmax(axis=2) == self.labels).mean(axis=1)
        return pd.DataFrame({"val_accuracy": accuracies, "multiplications": self.costs})


def cascades(result: SweepResult) -> pd.DataFrame:
    """The frontier of the sweep's cascades, cell by cell and seed by seed, cheapest first.

    Columns: cell, seed, networks (trial_ids, in the order in which they look), thresholds,
    val_accuracy, multiplications (mean), reached (share of the images that comes to each),
    best_alone (the accuracy of the best network alone that costs no more; missing if none does) and
    judged (images). Accuracies are of the half of the validation images that chose nothing.
    """
    parts = [
        part.assign(cell=cell, seed=seed)
        for cell, seed, networks in _comparable(result)
        if len(part := _frontier(networks))
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _comparable(result: SweepResult) -> Iterator[tuple[str, int, _Networks]]:
    """The networks of each cell and seed that were judged on the same images.

    Those that decide per image are left out: their cost is not that of any image.
    """
    rows = result.searched[result.searched["status"] == "completed"]
    for (cell, seed), group in rows.groupby(["cell", "seed"], sort=False):
        same: dict[bytes, list[tuple[float, str, NDArray[np.float32], NDArray[np.int64]]]] = {}
        for _, row in group.sort_values("multiplications", kind="stable").iterrows():
            path: Path = result.file(row, LOGITS)
            if result.decides_per_image(row) or not path.exists():
                continue
            logits, labels = read_logits(path)
            found = float(row["multiplications"]), str(row["trial_id"]), logits, labels
            same.setdefault(labels.tobytes(), []).append(found)
        for members in same.values():
            costs, ids, logits_of, labels_of = zip(*members, strict=True)
            answers = _log_softmax(np.stack(logits_of).astype(np.float64))
            yield (
                str(cell),
                int(str(seed)),
                _Networks(list(ids), np.array(costs), answers, labels_of[0]),
            )


def _frontier(networks: _Networks) -> pd.DataFrame:
    """The cascades that nothing beats on the choosing half, as judged on the other."""
    n = len(networks.labels)
    choosing = draw(networks.labels, n // 2, np.random.default_rng(STREAM))
    own, judging = networks.of_images(choosing), networks.of_images(~choosing)
    alone = own.alone()
    front = np.flatnonzero(non_dominated(alone, TRADE))
    if len(front) > MOST_COMBINED:
        front = front[np.linspace(0, len(front) - 1, MOST_COMBINED).round().astype(int)]
    if len(front) < 2:
        return pd.DataFrame()
    own, judging = own.of_networks(front.tolist()), judging.of_networks(front.tolist())
    tried = [
        each
        for size in (2, 3)
        for members in combinations(range(len(front)), size)
        for each in _tried(own, members)
    ]
    points = pd.concat([pd.DataFrame(tried), alone.assign(members=None)], ignore_index=True)
    best = points[non_dominated(points, TRADE) & points["members"].notna()]
    best = best.drop_duplicates(["val_accuracy", "multiplications"]).sort_values("multiplications")
    if len(best) > MOST_SHOWN:
        best = best.iloc[np.linspace(0, len(best) - 1, MOST_SHOWN).round().astype(int)]
    return pd.DataFrame(
        [
            _judged(judging, members, thresholds)
            for members, thresholds in zip(best["members"], best["thresholds"], strict=True)
        ]
    )


def _tried(networks: _Networks, members: Sequence[int]) -> Iterator[dict[str, object]]:
    """Accuracy and cost of a cascade of two or three with every combination of thresholds."""
    n = len(networks.labels)
    answers = [_mean(networks, members[: number + 1]) for number in range(len(members))]
    correct = [(each.argmax(axis=1) == networks.labels).astype(float) for each in answers]
    levels, unsure = [], []  # unsure: (thresholds, n)
    for each in answers[:-1]:
        margins = _margins(each)
        # Halfway between two images' margins, so that rounding tips no decision.
        ordered = np.sort(margins)
        ordered = np.concatenate([ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
        on = np.linspace(n / THRESHOLDS, n, THRESHOLDS)  # images that go on
        levels.append(ordered[on.round().astype(int)])
        unsure.append((margins < levels[-1][:, None]).astype(float))
    costs = networks.costs[list(members)]
    second = unsure[0].mean(axis=1)
    accuracy = correct[0].mean() + unsure[0] @ (correct[1] - correct[0]) / n
    cost = costs[0] + costs[1] * second
    if len(members) == 2:
        for level, right, spent in zip(levels[0], accuracy, cost, strict=True):
            yield _point(members, (level,), right, spent)
        return
    gained = unsure[0] @ (unsure[1] * (correct[2] - correct[1])).T / n  # (first, second threshold)
    third = unsure[0] @ unsure[1].T / n
    for a, b in np.ndindex(third.shape):
        right, spent = accuracy[a] + gained[a, b], cost[a] + costs[2] * third[a, b]
        yield _point(members, (levels[0][a], levels[1][b]), right, spent)


def _point(
    members: Sequence[int], thresholds: tuple[float, ...], accuracy: float, cost: float
) -> dict[str, object]:
    return {
        "members": tuple(members),
        "thresholds": thresholds,
        "val_accuracy": accuracy,
        "multiplications": cost,
    }


def _judged(
    networks: _Networks, members: Sequence[int], thresholds: Sequence[float]
) -> dict[str, object]:
    """A cascade as it does on the images of `networks`."""
    n = len(networks.labels)
    waiting, answer = np.ones(n, dtype=bool), _mean(networks, members[:1])
    reached, cost = [1.0], networks.costs[members[0]]
    for number, threshold in enumerate(thresholds, 1):
        waiting &= _margins(answer) < threshold
        answer = np.where(waiting[:, None], _mean(networks, members[: number + 1]), answer)
        reached.append(waiting.mean())
        cost += networks.costs[members[number]] * reached[-1]
    alone = networks.alone()
    affordable = alone["val_accuracy"][alone["multiplications"] <= cost]
    return {
        "networks": [networks.trial_ids[place] for place in members],
        "thresholds": [float(each) for each in thresholds],
        "val_accuracy": (answer.argmax(axis=1) == networks.labels).mean(),
        "multiplications": cost,
        "reached": reached,
        "best_alone": affordable.max(),
        "judged": n,
    }


def _mean(networks: _Networks, members: Sequence[int]) -> Floats:
    """Mean of log-probabilities, normalised: (n, classes)."""
    return _log_softmax(networks.answers[list(members)].mean(axis=0))


def _margins(answers: Floats) -> Floats:
    second, first = np.partition(np.exp(answers), -2, axis=1)[:, -2:].T
    margins: Floats = first - second
    return margins


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
