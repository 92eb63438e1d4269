"""Every class keeps its share of what is drawn."""

import numpy as np
import pytest

from testbed.stratified import apportion, draw


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (5, [3, 3, 1], [2, 2, 1]),  # 2.14, 2.14, 0.71
        (4, [3, 3, 1], [2, 2, 0]),  # 1.71, 1.71, 0.57
        (1, [2, 2], [1, 0]),
        (7, [3, 3, 1], [3, 3, 1]),
        (0, [3, 3, 1], [0, 0, 0]),
    ],
)
def test_shares_follow_the_largest_remainder(
    total: int, sizes: list[int], expected: list[int]
) -> None:
    assert apportion(total, np.array(sizes)).tolist() == expected


def test_shares_always_sum_up_and_never_exceed_a_class() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(0, 20, size=6) + np.eye(6, dtype=int)[0]
        total = int(random.integers(0, sizes.sum() + 1))
        shares = apportion(total, sizes)
        assert shares.sum() == total
        assert (np.abs(shares - total * sizes / sizes.sum()) < 1).all()
        assert (shares <= sizes).all()


def test_groups_of_one_are_drawn_as_exactly_as_images() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    alone = np.arange(200).astype(str)
    drawn = draw(labels, 50, np.random.default_rng(0), groups=alone)
    expected = apportion(50, np.bincount(labels))
    assert np.bincount(labels[drawn]).tolist() == expected.tolist()
