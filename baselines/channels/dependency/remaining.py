"""Trace of a network that channels were removed from, without running it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.channels.dependency.records import Labels, Product, Trace


def remaining(found: Trace, lost: NDArray[np.bool_]) -> Trace:
    """`found` as it is of the smaller network.

    Args:
        lost: whether the channel of each label goes.
    """

    def left(labels: Labels) -> Labels:
        return labels[~lost[labels]]

    def without(entries: Sequence[Any]) -> list[Any]:
        return [replace(each, labels=left(each.labels)) for each in entries]

    def smaller(product: Product) -> Product:
        stays = [1 - lost[labels].mean() for labels in product.dimensions]
        multiplications = round(product.multiplications * float(np.prod(stays)))
        return Product(multiplications, tuple(left(labels) for labels in product.dimensions))

    return replace(
        found,
        tensors={name: [left(labels) for labels in along] for name, along in found.tensors.items()},
        products=[smaller(product) for product in found.products],
        writers=without(found.writers),
        readers=without(found.readers),
        statistics=without(found.statistics),
        counts=without(found.counts),
        summed=[left(labels) for labels in found.summed],
    )
