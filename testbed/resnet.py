"""Residual networks for small images: a 3x3 stem without pooling, then stages of basic blocks.

Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import pad

Shortcut = Callable[[int, int, int], nn.Module]  # input channels, output channels, stride


class PaddingShortcut(nn.Module):
    """The parameter-free shortcut (option A): every `stride`-th pixel, new channels all zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        kept = images[:, :, :: self.stride, :: self.stride]
        return pad(kept, (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 1x1 conv with batch norm (option B)."""
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))


class BasicBlock(nn.Module):
    """Two 3x3 convs beside a shortcut; nothing else adds to the output of the first."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, make_shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else make_shortcut(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(images)))
        outer: Tensor = self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(images))
        return outer


def resnet(
    in_channels: int,
    n_classes: int,
    *,
    channels: Sequence[int],
    blocks: int,
    make_shortcut: Shortcut,
) -> nn.Module:
    """One stage of `blocks` blocks for each of `channels`; all but the first halve the map."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(channels[0]),
        relu=nn.ReLU(),
    )
    for number, (before, after) in enumerate(pairwise([channels[0], *channels]), 1):
        first = BasicBlock(before, after, 1 if number == 1 else 2, make_shortcut)
        others = (BasicBlock(after, after, 1, make_shortcut) for _ in range(blocks - 1))
        layers[f"stage{number}"] = nn.Sequential(first, *others)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels[-1], n_classes)
    return nn.Sequential(layers)
