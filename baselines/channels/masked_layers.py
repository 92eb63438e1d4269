"""Layers above the channels of a group, as they run for each of several masks of the group.

Layers that read the channels read those that stay alone. Batch norms have statistics of each
mask's own, folded into the convs before them once they are known.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from baselines.channels.batch_norm_statistics import start_estimation
from testbed.prepared_layers import folded


@dataclass
class Turn:
    """What layers run now: they look here each time."""

    batch: int = 0
    mask: int = 0
    estimating: bool = False
    """Whether batch norms learn statistics from the batch, and normalise by those of the batch."""


class SlicedReader(nn.Module):
    """A conv or linear layer that reads some of its inputs only."""

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        inputs: Tensor,
        turn: Turn,
        weight_for: Callable[[Tensor], Tensor],
    ) -> None:
        """
        Args:
            inputs: (channels, inputs of each channel) int64, on the layer's device.
            weight_for: of a mask (channels,), the whole layer's weight with it.
        """
        super().__init__()
        self.bias = layer.bias
        self._layer = layer
        self._weight_for = weight_for
        self._inputs = inputs
        self._turn = turn
        n_inputs = layer.weight.shape[1]
        self._others = torch.ones(n_inputs, dtype=torch.bool, device=inputs.device)
        self._others[inputs.flatten()] = False
        self._taken: list[tuple[Tensor, Tensor]] = []

    def take(self, masks: Tensor) -> None:
        """From now on the turn's mask is the number of one of these, (masks, channels) bool."""
        self._taken = []
        for mask in masks.to(self._inputs.device):
            read = self._others.clone()
            read[self._inputs[mask].flatten()] = True
            places = read.nonzero().flatten()
            self._taken.append((places, self._weight_for(mask).index_select(1, places)))

    @property
    def weight(self) -> Tensor:
        """For the inputs that it reads now."""
        return self._taken[self._turn.mask][1]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As that of `nn.Conv2d`, of linear layers too."""
        places, _ = self._taken[self._turn.mask]
        if isinstance(self._layer, nn.Linear):
            return F.linear(_gathered(x, places), weight, bias)
        x = _gathered(x.permute(0, 2, 3, 1), places).permute(0, 3, 1, 2)
        return self._layer._conv_forward(x, weight, bias)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """Entries of the last dimension; some times as fast as `index_select` there."""
    return x.gather(-1, places.expand(*x.shape[:-1], -1))


class SummedReader(nn.Module):
    """A linear layer whose output is the sum of what each channel that stays contributes to it.

    The contributions are computed once for each batch, which costs as much as the whole layer; a
    mask is then a sum of them, and all masks together are one small matrix product.
    """

    def __init__(self, layer: nn.Linear, inputs: Tensor, turn: Turn) -> None:
        """As for `SlicedReader`; the layer reads nothing but these inputs."""
        super().__init__()
        self._inputs = inputs
        self._turn = turn
        self._weight = layer.weight.detach()[:, inputs].permute(1, 2, 0).contiguous()
        self._bias = layer.bias
        self._contributions: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    def take(self, masks: Tensor) -> None:
        """From now on the turn's mask is the number of one of these, (masks, channels) bool."""
        self._masks = masks.to(self._inputs.device, torch.float32)
        self._sums = {}

    def forward(self, x: Tensor) -> Tensor:
        """`x` must be the same each time for the same batch."""
        if self._turn.batch not in self._sums:
            with torch.autocast(x.device.type, enabled=False):
                self._sums = {self._turn.batch: self._sum(x)}
        return self._sums[self._turn.batch][self._turn.mask]

    def _sum(self, x: Tensor) -> Tensor:
        """Of the masks, (masks, ..., outputs)."""
        batch = self._turn.batch
        if batch not in self._contributions:
            by_channel = x.float()[..., self._inputs].flatten(0, -3).transpose(0, 1)
            self._contributions[batch] = torch.bmm(by_channel, self._weight)
        each = self._contributions[batch]  # (channels, images, outputs)
        sums = (self._masks @ each.flatten(1)).view(-1, *x.shape[:-1], each.shape[-1])
        return sums if self._bias is None else sums + self._bias


class NormOfMasks(nn.Module):
    """A batch norm with statistics of each mask's own."""

    def __init__(self, norm: _BatchNorm, turn: Turn) -> None:
        super().__init__()
        self._norm = norm
        self._turn = turn
        self._of_masks: list[_BatchNorm] = []

    def take(self, masks: Tensor) -> None:
        """From now on the turn's mask is the number of one of these; no statistics are known."""
        shared = {id(tensor): tensor for tensor in self._norm.parameters()}
        while len(self._of_masks) < len(masks):
            self._of_masks.append(copy.deepcopy(self._norm, dict(shared)))
        for norm in self._of_masks:
            start_estimation(norm)

    @property
    def now(self) -> _BatchNorm:
        """That of the turn."""
        return self._of_masks[self._turn.mask].train(self._turn.estimating)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.now(x)
        return normalised


class NormedConv(nn.Module):
    """A conv and the batch norm that follows it, folded into it where statistics are known."""

    def __init__(self, conv: nn.Conv2d | SlicedReader, norm: NormOfMasks, turn: Turn) -> None:
        super().__init__()
        self._conv = conv
        self._norm = norm
        self._turn = turn

    def forward(self, x: Tensor) -> Tensor:
        if self._turn.estimating:
            normalised: Tensor = self._norm(self._conv(x))
            return normalised
        norm = self._norm.now
        assert isinstance(norm, nn.BatchNorm2d)
        return self._conv._conv_forward(x, *folded(self._conv.weight, self._conv.bias, norm))
