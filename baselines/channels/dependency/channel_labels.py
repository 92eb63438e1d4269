"""Channel labels: which entries of a network's tensors belong to the same channel.

Every entry along every dimension of a parameter or buffer begins with a label of its own, and the
operations of a forward pass tie labels together: what an addition adds, what a conv multiplies.
Labels that are tied stand for one channel, which is kept or lost everywhere at once. A label may
also be fixed, with a reason: that channel must stay.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CONSTANT = 0
"""The label of entries that no parameter stands for, such as a padding's zeros: always fixed."""

Field = Tensor
"""Labels of a tensor's entries: int64, of as many dimensions; 1 in those that labels do not vary
along. A weight has one field for its outputs and one for its inputs."""


class ChannelLabels:
    """Labels 0, 1, ..., tied into channels (disjoint sets, each known by its smallest label)."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._reasons = ["it meets a number of channels that the code fixes"]
        self._why = np.zeros(1, dtype=np.int64)  # of each root: place of its reason, -1 for none
        self._n = 1

    def new(self, n: int) -> NDArray[np.int64]:
        """`n` labels of their own."""
        labels = np.arange(self._n, self._n + n)
        self._n += n
        if self._n > len(self._parent):
            room = np.arange(len(self._parent), 2 * self._n)
            self._parent = np.concatenate([self._parent, room])
            self._why = np.concatenate([self._why, np.full(len(room), -1)])
        return labels

    def channel(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channels that labels stand for, of the same shape."""
        found = self._parent[labels]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                self._parent[labels] = found
                return found
            found = further

    def tie(self, some: Tensor, others: Tensor) -> None:
        """Makes one channel of each label of `some` and the one at its place in `others`.

        A channel tied to a `CONSTANT` is fixed. The two broadcast against each other.
        """
        a, b = (each.numpy() for each in torch.broadcast_tensors(some, others))
        constant = (a == CONSTANT) | (b == CONSTANT)
        if constant.any():
            self.fix(torch.from_numpy(np.where(a == CONSTANT, b, a)[constant]), self._reasons[0])
            a, b = a[~constant], b[~constant]
        pairs = np.unique(a.ravel() * self._n + b.ravel())
        a, b = np.divmod(pairs, self._n)
        while True:
            first, second = self.channel(a), self.channel(b)
            apart = first != second
            if not apart.any():
                return
            low = np.minimum(first, second)[apart]
            high = np.maximum(first, second)[apart]
            self._parent[high] = low
            fixed = self._why[high] >= 0
            self._why[low[fixed]] = self._why[high[fixed]]

    def fix(self, labels: Tensor, reason: str) -> None:
        """Fixes channels, which keep the first reason they get."""
        channels = np.unique(self.channel(labels.numpy().ravel()))
        free = channels[self._why[channels] < 0]
        if len(free):
            self._reasons.append(reason)
            self._why[free] = len(self._reasons) - 1

    def fixed(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each label is of a channel that must stay."""
        found: NDArray[np.bool_] = self._why[self.channel(labels)] >= 0
        return found

    def reason(self, label: int) -> str | None:
        """Why a label's channel must stay; None where it need not."""
        why = self._why[self.channel(np.array([label]))[0]]
        return None if why < 0 else self._reasons[why]

    def __len__(self) -> int:
        return self._n

    def varies(self, field: Field, dim: int) -> bool:
        """Whether a field is of different channels along a dimension."""
        if field.shape[dim] == 1:
            return False
        channels = torch.from_numpy(self.channel(field.numpy()))
        return not bool((channels == channels.narrow(dim, 0, 1)).all())

    def narrowed(self, fields: Sequence[Field]) -> list[Field]:
        """The fields, 1 long in dimensions along which the channels do not vary.

        What is one channel everywhere cannot be lost, and is fixed.
        """
        found = []
        for field in fields:
            for dim in range(field.ndim):
                if field.stride(dim) == 0:  # else a tensor's every entry would be looked at
                    field = field.narrow(dim, 0, 1)
            for dim in range(field.ndim):
                if field.shape[dim] > 1 and not self.varies(field, dim):
                    field = field.narrow(dim, 0, 1)
            if field.numel() > 1:
                found.append(field.contiguous())
            elif field.ndim:
                self.fix(
                    field, "all channels of a layer belong together, so that none can go alone"
                )
        return found
