"""Multiplications that are left when channels go, in closed form.

Each product of a network's run (a conv, a matrix product) costs in proportion to the channels that
stay along each of its dimensions.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from baselines.channels.channel_groups import ChannelGroups


class Multiplications:
    """The multiplications of a network without some channels of its groups."""

    def __init__(self, groups: ChannelGroups) -> None:
        found = groups.trace
        sizes = [group.channels for group in groups.values()]
        ends = np.cumsum(sizes)
        self._slices = {
            name: slice(int(end) - size, int(end))
            for name, end, size in zip(groups, ends, sizes, strict=True)
        }
        self._channels = int(ends[-1])
        column = np.full(len(found.labels), -1)
        for name, group in groups.items():
            column[group.labels] = np.arange(self._slices[name].start, self._slices[name].stop)
        column = column[found.labels.channel(np.arange(len(column)))]
        rows, columns, values = [], [], []
        self._of_product: list[int] = []  # of each dimension
        for number, product in enumerate(found.products):
            for labels in product.dimensions:
                places, counts = np.unique(column[labels], return_counts=True)
                inside = places >= 0
                if inside.any():
                    rows += [len(self._of_product)] * int(inside.sum())
                    columns += places[inside].tolist()
                    values += (counts[inside] / len(labels)).tolist()
                    self._of_product.append(number)
        shape = (len(self._of_product), self._channels)
        self._shares = csr_array((values, (rows, columns)), shape=shape)
        self._dense = np.array([p.multiplications for p in found.products], dtype=np.float64)

    def share(self, removed: Mapping[str, int]) -> float:
        """The share of the dense network's multiplications that stays.

        Args:
            removed: how many channels of each group go. Which ones makes no difference, as the
                same layers write all channels of a group.
        """
        gone: NDArray[np.float64] = np.zeros(self._channels)
        for name, count in removed.items():
            start = self._slices[name].start
            gone[start : start + count] = 1
        left = np.ones(len(self._dense))
        np.multiply.at(left, self._of_product, 1 - self._shares @ gone)
        return float((left * self._dense).sum() / self._dense.sum())
