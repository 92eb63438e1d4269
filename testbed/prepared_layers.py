"""Layers prepared for inference: weights cut, folded with batch norm and laid out once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

Prepared = Callable[[Tensor], Tensor]
"""What a layer does with its input, its weights made ready for it."""


def prepare_conv(
    conv: nn.Conv2d,
    dtype: torch.dtype,
    *,
    inputs: int | None = None,
    outputs: int | None = None,
    norm: nn.BatchNorm2d | None = None,
    relu: bool = False,
) -> Prepared:
    """The conv from a prefix of its inputs to a prefix of its outputs, in `dtype`.

    Args:
        inputs, outputs: channels; None for all.
        norm: a batch norm with running statistics that follows, which is folded into the weights.
        relu: whether a ReLU follows.
    """
    weight = conv.weight.detach()[:outputs, :inputs]
    bias = None if conv.bias is None else conv.bias.detach()[:outputs]
    if norm is not None:
        weight, bias = folded(weight, bias, norm)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(dtype)
    padded_by_torch = conv.padding_mode != "zeros" or isinstance(conv.padding, str)
    if _multiplied_by_onednn(weight) and not padded_by_torch:
        return _packed_conv(conv, weight, bias, relu)

    def run(images: Tensor) -> Tensor:
        result = conv._conv_forward(images.to(dtype), weight, bias)
        return result.relu_() if relu else result

    return run


def prepare_linear(linear: nn.Linear, dtype: torch.dtype, inputs: int | None = None) -> Prepared:
    """The linear layer on a prefix of its inputs, in `dtype`."""
    weight = linear.weight.detach()[:, :inputs].to(dtype)
    bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    @cache
    def packed() -> Tensor:
        result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 32)
        return result

    def run(values: Tensor) -> Tensor:
        # A single image reads the weights where they are: were there a copy of them for each
        # prefix, they would push each other out of the cache.
        if not packs or values.ndim != 2 or len(values) == 1:
            return F.linear(values.to(dtype), weight, bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            values.to(dtype), packed(), bias, "none", [], ""
        )
        return result

    packs = _multiplied_by_onednn(weight)
    return run


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a conv, or of a prefix of its outputs, with the batch norm that follows.

    Args:
        norm: with running statistics, of as many channels or more.
    """
    mean, variance, scale, shift = statistics_of(norm, len(weight))
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    return fused[0].detach(), fused[1].detach()


def statistics_of(norm: nn.BatchNorm2d | nn.InstanceNorm2d, channels: int | None) -> list[Any]:
    """Running mean and variance, weight and bias of the first channels; None where it has none."""
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return [None if tensor is None else tensor.detach()[:channels] for tensor in tensors]


def _multiplied_by_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with it: then it may lay the weights out as it likes."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype is torch.float32 or (
        weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _packed_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, relu: bool) -> Prepared:
    padding, stride, dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
    reorder = torch.ops.mkldnn._reorder_convolution_weight

    @cache
    def packed(height: int, width: int) -> Tensor:
        # oneDNN lays the weights out by the size of the images, not by their number.
        shape = [8, weight.shape[1] * conv.groups, height, width]
        result: Tensor = reorder(weight, padding, stride, dilation, conv.groups, shape)
        return result

    operation = torch.ops.mkldnn._convolution_pointwise.default
    after = "relu" if relu else "none"
    others: tuple[Any, ...] = (bias, padding, stride, dilation, conv.groups, after, [], "")
    dtype = weight.dtype

    def run(images: Tensor) -> Tensor:
        if images.dtype is not dtype:
            images = images.to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        result: Tensor = operation(images, packed(*images.shape[2:]), *others)
        return result

    return run


# Formulas take shapes; a reordering multiplies nothing.
if torch.backends.mkldnn.is_available():
    register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(
        lambda images, weight, *_, out_shape, **__: conv_flop_count(images, weight, out_shape)
    )
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(
        lambda values, *_, out_shape, **__: 2 * values[0] * values[1] * out_shape[1]
    )
    for _reorder in ("_reorder_convolution_weight", "_reorder_linear_weight"):
        register_flop_formula(getattr(torch.ops.mkldnn, _reorder))(lambda *_, **__: 0)
