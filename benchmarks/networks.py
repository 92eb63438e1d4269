"""The networks that benchmarks run, with the weights that they are drawn with."""

import torch
from torch import nn

from testbed.backbones import build_backbone

SHAPE = (3, 32, 32)


def backbone(name: str, width: float = 1.0) -> nn.Module:
    """With this share of the channels of each conv, but for the first one of the 96 M network."""
    torch.manual_seed(0)
    if name == "vgg16":
        return build_backbone("vgg16", SHAPE, 10, width=width).eval()
    channels = [64, *(round(width * full) for full in (64, 128, 128))]
    return build_backbone("conv", SHAPE, 10, channels=channels, pool_after=[2, 4]).eval()
