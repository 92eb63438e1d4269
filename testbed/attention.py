"""Attention with any number of heads, in the place of modules whose code ties it to their width.

`nn.MultiheadAttention` reads the size of a head from the width of its input, so it cannot lose a
head; nor can torchvision's Swin and MaxViT (`window_attention`). `SlimMultiheadAttention` runs the
same operations on the same parameters, under the same names, and counts the heads from the weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn


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


def allow_fewer_heads(network: nn.Module) -> None:
    """Lets the attention modules of `network` have any number of heads, in place."""
    for module in network.modules():
        if type(module) is nn.MultiheadAttention:
            if module.bias_k is None and not module.add_zero_attn:  # else it adds keys of its own
                module.__class__ = SlimMultiheadAttention
        elif type(module).__module__.startswith("torchvision."):
            # Here, as torchvision takes seconds to import: who has such a module has done it.
            from testbed.window_attention import allow_fewer_heads_of

            allow_fewer_heads_of(module)
