"""Attention within windows with any number of heads, for torchvision's Swin and MaxViT.

Theirs read the size of a head from the width of their input, so none of them can lose a head. These
run the same operations on the same parameters, under the same names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class SlimMaxVitAttention(RelativePositionalMultiHeadAttention):
    """torchvision's attention of MaxViT, of any number of heads."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, windows, positions, channels), and the same again."""
        q, k, v = (
            each.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
            for each in self.to_qkv(x).chunk(3, dim=-1)
        )
        scores = q @ (k * self.scale_factor).transpose(-2, -1)
        weights = (scores + self.get_relative_positional_bias()).softmax(dim=-1)
        result: Tensor = self.merge((weights @ v).transpose(-3, -2).flatten(-2))
        return result


class SlimWindowAttention(ShiftedWindowAttention):
    """torchvision's attention of Swin, of any number of heads.

    Source: Liu et al. 2021, "Swin transformer", section 3.2; version 2: Liu et al. 2022.
    """

    num_heads: int
    head_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """(n, height, width, channels), and the same again."""
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        size = padded.shape[1:3]
        shift = [
            0 if window >= length else by
            for window, length, by in zip(self.window_size, size, self.shift_size, strict=True)
        ]
        if any(shift):
            padded = padded.roll((-shift[0], -shift[1]), (1, 2))
        attended = self._attend(_windows(padded, rows, columns), size, shift)
        joined = _joined(attended, size, rows, columns)
        if any(shift):
            joined = joined.roll((shift[0], shift[1]), (1, 2))
        return joined[:, :height, :width].contiguous()

    def _attend(self, x: Tensor, size: torch.Size, shift: Sequence[int]) -> Tensor:
        """Attention within windows, (n * windows, positions, channels)."""
        q, k, v = (
            each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for each in F.linear(x, self.qkv.weight, self._bias()).chunk(3, dim=-1)
        )
        scores = self._scores(q, k) + self.get_relative_position_bias()
        if any(shift):
            mask = self._mask(size, shift, scores)
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        weights = F.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        result = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return F.dropout(result, self.dropout, self.training)

    def _bias(self) -> Tensor | None:
        bias: Tensor | None = self.qkv.bias
        return bias

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.head_dim**-0.5) @ k.transpose(-2, -1)

    def _mask(self, size: torch.Size, shift: Sequence[int], like: Tensor) -> Tensor:
        """-100 where two positions of a shifted window were no neighbours, (windows, p, p)."""
        regions = like.new_zeros(size)
        for dim, (length, window, by) in enumerate(zip(size, self.window_size, shift, strict=True)):
            place = torch.arange(length, device=like.device)
            region = (place >= length - window).to(like) + (place >= length - by).to(like)
            regions = regions + 3**dim * region.reshape(-1, *[1] * (1 - dim))
        of = _windows(regions[None, :, :, None], *self.window_size)[..., 0]
        return -100.0 * (of[:, None, :] != of[:, :, None]).to(like)


class SlimWindowAttentionV2(SlimWindowAttention, ShiftedWindowAttentionV2):
    """torchvision's cosine attention of Swin version 2, of any number of heads."""

    def _bias(self) -> Tensor | None:
        if self.qkv.bias is None:
            return None
        q, k, v = self.qkv.bias.chunk(3)
        return torch.cat([q, torch.zeros_like(k), v])

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.logit_scale.clamp(max=torch.log(torch.tensor(100.0)).item()).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale


def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """(n, height, width, channels) as (n * windows, positions, channels)."""
    parts = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    return parts.transpose(2, 3).flatten(3, 4).flatten(2, 2).flatten(0, 2)


def _joined(x: Tensor, size: torch.Size, rows: int, columns: int) -> Tensor:
    """The inverse of `_windows`, for maps of that size."""
    across = size[1] // columns
    parts = x.unflatten(1, (rows, columns)).unflatten(0, (-1, size[0] // rows, across))
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


SLIM: dict[type[nn.Module], type[nn.Module]] = {
    RelativePositionalMultiHeadAttention: SlimMaxVitAttention,
    ShiftedWindowAttention: SlimWindowAttention,
    ShiftedWindowAttentionV2: SlimWindowAttentionV2,
}


def allow_fewer_heads_of(module: nn.Module) -> None:
    """Lets a module of torchvision's have any number of heads, in place, if it is attention."""
    if type(module) not in SLIM:
        return
    if isinstance(module, ShiftedWindowAttention):
        module.head_dim = module.qkv.out_features // 3 // module.num_heads
    module.__class__ = SLIM[type(module)]
