"""Convs on some of their channels: inputs that hold nothing are not read."""

from typing import Any

import torch
from torch import Tensor, nn

from testbed import compiled


def conv_on(
    conv: nn.Conv2d, images: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """What a conv gives with these weights, of some of its input maps; the others count as zero.

    Args:
        conv: an ungrouped one, whose padding and stride are taken.
        images: (n, channels, H, W).
        inputs: (k,) int64, which maps are read; there may be none.
        weight: (outputs, k, *kernel); there may be no outputs.
        bias: (outputs,), or None.
    """
    if weight.numel():
        maps = images if len(inputs) == images.shape[1] else images.index_select(1, inputs)
        return conv._conv_forward(maps, weight, bias)
    # No image at all has outputs of the right size, and costs nothing.
    height, width = conv._conv_forward(images[:0], conv.weight, conv.bias).shape[2:]
    shape = len(images), len(weight), height, width
    if bias is None:
        return images.new_zeros(shape, dtype=weight.dtype)
    return bias[None, :, None, None].expand(shape)


def operators_for(conv: nn.Conv2d, images: Tensor) -> Any:
    """The compiled operators `gate` and `conv_on`, if they can run this conv on these images.

    None where they were not built, on a GPU, in another precision, or while a program is exported.
    """
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
    on_cpu = images.is_cpu and images.dtype is conv.weight.dtype is torch.float32
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not plain or not on_cpu or traced or torch.is_autocast_enabled("cpu"):
        return None
    return compiled.operators()
