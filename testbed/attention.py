"""Attention with any number of heads, in the place of modules whose code ties it to their width.

`nn.MultiheadAttention` and torchvision's Swin and MaxViT read the size of a head from the width of
their input, so none of them can lose a head. These run the same operations on the same parameters,
under the same names, and count the heads from the weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class SlimMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention of any number of heads; `head_dim` stays what it was."""

    # The fused encoder layer of torch takes whole heads only: this sends it another way.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As for `nn.MultiheadAttention`."""
        batched = query.ndim == 3
        heads = self._projected(query, key, value)
        if not batched:
            heads = [each.unsqueeze(0) for each in heads]
        elif not self.batch_first:
            heads = [each.transpose(0, 1) for each in heads]
        # (n, heads, length, head_dim)
        q, k, v = (e.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for e in heads)
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        if attn_mask is not None:
            mask = attn_mask.unflatten(0, (len(q), -1)) if attn_mask.ndim == 3 else attn_mask
            scores = _masked(scores, mask)
        if key_padding_mask is not None:
            padding = key_padding_mask if batched else key_padding_mask.unsqueeze(0)
            scores = _masked(scores, padding[:, None, None, :])
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        result = self.out_proj(attended)
        if not batched:
            result = result.squeeze(0)
        elif not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return result, weights if batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, (..., heads * head_dim) each."""
        bias = self.in_proj_bias
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, dim=-1)
        if self.in_proj_weight is not None:
            weights: Sequence[Tensor] = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        given = (query, key, value)
        return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask, float("-inf"))
    return scores + mask


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
    nn.MultiheadAttention: SlimMultiheadAttention,
    RelativePositionalMultiHeadAttention: SlimMaxVitAttention,
    ShiftedWindowAttention: SlimWindowAttention,
    ShiftedWindowAttentionV2: SlimWindowAttentionV2,
}


def allow_fewer_heads(network: nn.Module) -> None:
    """Lets the attention modules of `network` have any number of heads, in place."""
    for module in network.modules():
        if type(module) is nn.MultiheadAttention and (
            module.bias_k is not None or module.add_zero_attn
        ):
            continue  # they add keys of their own
        if isinstance(module, ShiftedWindowAttention) and type(module) in SLIM:
            module.head_dim = module.qkv.out_features // 3 // module.num_heads
        if type(module) in SLIM:
            module.__class__ = SLIM[type(module)]
