"""Stratified drawing: a part of a set in which every class keeps its share."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

TEST_SHARE = 0.2
TEST_CUT_SEED = 0


def apportion(total: int, class_sizes: Integers) -> Integers:
    """Divides `total` among classes in proportion to their sizes, by the largest remainder.

    The result sums to `total` exactly and exceeds no class's size; ties go to the earlier class.
    """
    quotas, remainders = np.divmod(total * class_sizes, class_sizes.sum())
    left = total - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    return quotas


def draw(
    labels: Integers,
    total: int,
    random: np.random.Generator,
    groups: NDArray[np.str_] | None = None,
) -> NDArray[np.bool_]:
    """Draws `total` images so that every class has its share.

    Args:
        labels: (n,) classes from 0.
        total: how many to draw, at most n.
        groups: (n,), what must stay together, such as who is in the picture. Groups are taken in
            random order as long as they fit, so a class can get fewer than its share where its
            groups are large.

    Returns:
        (n,) true for the images drawn.
    """
    quotas = apportion(total, np.bincount(labels))
    drawn = np.zeros(len(labels), dtype=bool)
    if groups is None:
        order = random.permutation(len(labels))
        for label, quota in enumerate(quotas):
            drawn[order[labels[order] == label][:quota]] = True
        return drawn
    names, group_of = np.unique(groups, return_inverse=True)
    sizes = np.zeros((len(names), len(quotas)), dtype=np.int64)  # of each group in each class
    np.add.at(sizes, (group_of, labels), 1)
    taken = np.zeros(len(names), dtype=bool)
    for group in random.permutation(len(names)):
        if (sizes[group] <= quotas).all():
            taken[group] = True
            quotas -= sizes[group]
    return taken[group_of]


def test_cut(labels: Integers) -> NDArray[np.bool_]:
    """Which images are for the test, where a data set brings none of its own: a fifth.

    Always the same ones, whatever the seed of a trial.
    """
    total = round(TEST_SHARE * len(labels))
    return draw(labels, total, np.random.default_rng(TEST_CUT_SEED))
