"""Early stopping: who is ahead of whom, and who goes on at a rung."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import early_stopping
from orchestrator.search.successive_halving import (
    RungsInMemory,
    SuccessiveHalving,
    n_before,
    spread,
)
from orchestrator.sweep_file import EarlyStopping, load_sweep

OBJECTIVES = {"val_accuracy": "maximize", "multiplications": "minimize"}


@dataclass
class Judge:
    """The rule with its memory."""

    reduction: float = 2.0
    rungs: RungsInMemory = field(default_factory=RungsInMemory)

    def __call__(
        self, trial: int, accuracy: float, cost: float, epochs: int = 1, study: str = "study"
    ) -> bool:
        rule = SuccessiveHalving(OBJECTIVES, self.reduction)
        values = figures(accuracy, cost)
        return rule.goes_on(self.rungs, study, epochs, f"{study}-{trial:03d}", values)


def figures(accuracy: float, cost: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "multiplications": cost, "parameters": 7.0}


def test_rungs_are_as_far_apart_as_the_reduction_and_end_before_the_training() -> None:
    assert EarlyStopping(min_epochs=2, reduction=2).rungs(16) == (2, 4, 8)
    assert EarlyStopping(min_epochs=1, reduction=3).rungs(28) == (1, 3, 9, 27)
    assert EarlyStopping(min_epochs=3, reduction=1.2).rungs(7) == (3, 4, 5, 6)
    assert EarlyStopping(min_epochs=4).rungs(4) == ()


def test_a_fronts_points_are_as_far_apart_as_their_neighbours() -> None:
    front = np.array([[0.0, 10.0], [1.0, 6.0], [2.0, 4.0], [4.0, 0.0]])

    assert spread(front).tolist() == [math.inf, 2 / 4 + 6 / 10, 3 / 4 + 6 / 10, math.inf]


def test_equal_points_share_one_distance_and_do_not_crowd_each_other() -> None:
    front = np.array([[0.0, 2.0], [1.0, 1.0], [1.0, 1.0], [2.0, 0.0]])

    assert spread(front).tolist() == [math.inf, 2.0, 2.0, math.inf]
    assert spread(np.array([[3.0, 5.0], [3.0, 5.0]])).tolist() == [0.0, 0.0]


def test_an_objective_that_is_equal_for_all_says_nothing() -> None:
    """As the multiplications of magnitude pruning: what is left is a ranking by the other one."""
    points = np.array([[0.3, 7.0], [0.1, 7.0], [0.2, 7.0], [0.2, 7.0]])

    assert n_before(points).tolist() == [3, 0, 1, 1]


def brute_force_n_before(points: NDArray[np.float64]) -> list[int]:
    """Fronts peeled off one by one, neighbours looked for by name."""
    left, fronts = list(range(len(points))), []
    while left:
        front = [
            i
            for i in left
            if not any(
                (points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left
            )
        ]
        fronts.append(front)
        left = [i for i in left if i not in front]
    keys: dict[int, tuple[float, float]] = {}
    for rank, front in enumerate(fronts):
        different = {tuple(points[i]) for i in front}
        for i in front:
            distance = 0.0
            for axis in range(points.shape[1]):
                values = [point[axis] for point in different]
                low, high, own = min(values), max(values), points[i][axis]
                if low == high:
                    continue
                if own in (low, high):
                    distance = math.inf
                    continue
                above = min(v for v in values if v > own)
                below = max(v for v in values if v < own)
                distance += (above - below) / (high - low)
            keys[i] = (rank, -distance)
    return [sum(keys[j] < keys[i] for j in keys) for i in range(len(points))]


@pytest.mark.parametrize("seed", range(20))
def test_order_is_that_of_a_second_implementation(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.random((25, 2))
    points[5:9] = points[3]  # trials that nothing tells apart

    assert n_before(points).tolist() == pytest.approx(brute_force_n_before(points))


def test_what_none_beats_goes_on_and_more_if_that_is_less_than_its_share() -> None:
    judge = Judge(3)
    front = [(0.9, 9), (0.7, 7), (0.5, 5), (0.3, 3)]

    assert all(judge(trial, *point) for trial, point in enumerate(front))
    assert not judge(4, 0.6, 7.5), "two are a third, and four are ahead"
    judge = Judge(1.5)
    assert judge(0, 0.9, 1)
    assert judge(1, 0.5, 5), "two are the better two thirds of two"
    assert judge(2, 0.6, 4)
    assert not judge(3, 0.4, 6)


def test_the_first_goes_on_then_the_better_half() -> None:
    judge = Judge()

    assert judge(0, 0.5, 10)
    assert not judge(1, 0.4, 11), "worse in both"
    assert judge(2, 0.6, 9), "better in both"
    assert not judge(3, 0.45, 12)
    assert judge(4, 0.7, 8)


def test_each_rung_and_each_study_is_for_itself() -> None:
    judge = Judge()
    assert judge(0, 0.9, 1)

    assert judge(1, 0.1, 9, epochs=2)
    assert judge(0, 0.1, 9, study="another")


def test_trials_that_nothing_tells_apart_go_on_together() -> None:
    judge = Judge(4)

    assert all(judge(trial, 0.5, 10) for trial in range(8))


def test_a_trial_that_comes_again_is_answered_as_it_was() -> None:
    """As after a lost worker: others have come meanwhile, and decide nothing anew."""
    judge = Judge()
    first = [judge(0, 0.5, 10), judge(1, 0.4, 11)]
    for trial in range(2, 6):
        judge(trial, 0.9, 1)

    assert [judge(0, 0.5, 10), judge(1, 0.4, 11)] == first == [True, False]


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_follows_from_the_arrivals_before_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    judge = Judge()
    came: list[NDArray[np.float64]] = []
    went_on = 0
    for trial in range(30):
        accuracy, cost = generator.random(2)
        came.append(np.array([-accuracy, cost]))
        kept = np.array(came)
        beaten = ((kept <= kept[-1]).all(axis=1) & (kept < kept[-1]).any(axis=1)).any()
        expected = not beaten or brute_force_n_before(kept)[-1] < math.ceil(len(came) / 2)
        assert judge(trial, accuracy, cost) == expected
        went_on += expected

    assert 10 <= went_on <= 24, "about half, more where the first ones were poor"


def test_on_trials_of_other_seeds_the_defaults_save_the_epochs_and_beat_stopping_at_random() -> (
    None
):
    """On recorded curves, in the benchmark's twenty orders. The third goal, 0.98 of the
    hypervolume, is missed there (0.976), and the benchmark says so."""
    result = early_stopping.compare()

    assert result.goals["epochs saved"].met_by(result.ratios["epochs saved"])
    assert result.ratios["over stopping at random"] > 1.02


def test_stopping_at_random_saves_as_much() -> None:
    sweep = load_sweep(early_stopping.SWEEP_FILE)
    curves = early_stopping.read_curves(early_stopping.CURVES, sweep)["l1_filter-s0"]
    stops = dict(zip(list(curves)[:5], (2, 2, 5, 5, 12), strict=True))

    drawn = early_stopping.at_random(curves, stops, seed=0)
    assert drawn.keys() != stops.keys()
    assert sorted(drawn.values()) == [2, 2, 5, 5, 12]
    assert early_stopping.volume(curves, {}, sweep) >= early_stopping.volume(curves, drawn, sweep)
