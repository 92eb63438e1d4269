"""Networks of our own that are pruned: chains of convs, and the options of every network here.

The layers are ordinary modules without control flow that depends on the data, so `torch.fx` and the
dependency graph of torch-pruning can trace them, and none works in place, so a hook sees what its
layer gave. Weights are torch's defaults, drawn from its global generator: the caller seeds it, and
`reset_parameters()` on each module draws a fresh network of the same kind.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import nn

from testbed.resnet import PaddingShortcut, projection_shortcut, resnet

InputShape = tuple[int, int, int]  # channels, height, width
Width = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="Factor on every conv's channels.")
]
Dropout = Annotated[
    float, Field(ge=0, lt=1, description="Share of activations dropped in training, after convs.")
]
BatchNorm = Annotated[bool, Field(description="Whether each conv is followed by batch norm.")]
Hidden = Annotated[PositiveInt, Field(description="Outputs of the first linear layer.")]


class ConvOptions(BaseModel):
    """3x3 convs, each followed by ReLU, and two linear layers, as in two of the reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[PositiveInt, ...] | None = Field(
        default=None, min_length=1, description="Output channels of each conv, in place of depth."
    )
    depth: Literal[4, 6, 8] | None = Field(
        default_factory=lambda given: None if given.get("channels") else 4,
        description="Convs, with the channels of the reports; 4 where channels are not given.",
    )
    width: Width = 1.0
    dropout: Dropout = 0.0
    batch_norm: BatchNorm = True
    pool_after: tuple[PositiveInt, ...] | None = Field(
        default=None, description="Convs that a 2x2 max-pool follows, from 1; the last if None."
    )
    hidden: Hidden = 512

    @model_validator(mode="after")
    def _check(self) -> "ConvOptions":
        if self.depth is not None and self.channels is not None:
            raise ValueError(f"give depth or channels, not both: {self.depth}, {self.channels}")
        pooled, n_convs = self.pooled_convs, len(self.conv_channels)
        if len(set(pooled)) < len(pooled) or any(conv > n_convs for conv in pooled):
            raise ValueError(f"pool_after takes different convs from 1 to {n_convs}, got {pooled}")
        return self

    @property
    def conv_channels(self) -> tuple[int, ...]:
        return self.channels or CONV_CHANNELS[self.depth or 4]

    @property
    def pooled_convs(self) -> tuple[int, ...]:
        return (len(self.conv_channels),) if self.pool_after is None else self.pool_after


# Output channels by depth. Those of depth 6 are our choice: its report gives only 51.2 M in all.
CONV_CHANNELS = {
    4: (32, 50, 20, 12),
    6: (32, 50, 40, 27, 20, 12),
    8: (64, 128, 100, 64, 32, 25, 20, 16),
}


class Lfw3NetOptions(BaseModel):
    """The 3-category net of Lin et al. 2017; the size of its linear layers is our choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1.0
    dropout: Dropout = 0.0
    batch_norm: BatchNorm = True
    hidden: Hidden = 128


class MCifarNetOptions(BaseModel):
    """M-CifarNet, the eight convs that Gao et al. 2019 (FBS) prune at run time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1.0
    dropout: Dropout = 0.5  # after convs 4 and 7


class WidthOptions(BaseModel):
    """VGG-16 with batch norm, and the residual networks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1.0


class _Conv(NamedTuple):
    """One 3x3 conv of a chain, and what follows it."""

    channels: int
    stride: int = 1
    padding: int = 1
    dropout: float = 0.0
    pool: bool = False  # 2x2 max-pool


Layers = OrderedDict[str, nn.Module]


def _chain(in_channels: int, convs: Sequence[_Conv], batch_norm: bool) -> Layers:
    layers = Layers()
    for i, conv in enumerate(convs, 1):
        layers[f"conv{i}"] = nn.Conv2d(
            in_channels, conv.channels, 3, conv.stride, conv.padding, bias=not batch_norm
        )
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(conv.channels)
        if conv.dropout:
            layers[f"dropout{i}"] = nn.Dropout(conv.dropout)
        if conv.pool:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        # Usually drawn before both. Last, it gives the same, and reads a quarter of the values.
        layers[f"relu{i}"] = nn.ReLU()
        in_channels = conv.channels
    return layers


def _averaged_chain(in_channels: int, convs: Sequence[_Conv], n_classes: int) -> nn.Module:
    layers = _chain(in_channels, convs, batch_norm=True)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(convs[-1].channels, n_classes)
    return nn.Sequential(layers)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _check_size(input_shape: InputShape, smallest: int) -> None:
    _, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"this backbone needs images of at least {smallest} x {smallest} pixels, got {height} "
            f"x {width}: its pooling and strides would leave nothing of them. Take a backbone with "
            "less pooling (conv, resnet20) or larger images."
        )


def conv(options: ConvOptions, input_shape: InputShape, n_classes: int) -> nn.Module:
    in_channels, height, width = input_shape
    shrink = 2 ** len(options.pooled_convs)
    _check_size(input_shape, shrink)
    convs = [
        _Conv(_scaled(c, options.width), dropout=options.dropout, pool=i in options.pooled_convs)
        for i, c in enumerate(options.conv_channels, 1)
    ]
    layers = _chain(in_channels, convs, options.batch_norm)
    features = convs[-1].channels * (height // shrink) * (width // shrink)
    layers["flatten"] = nn.Flatten()
    layers["hidden"] = nn.Linear(features, options.hidden)
    layers["hidden_relu"] = nn.ReLU()
    layers["classifier"] = nn.Linear(options.hidden, n_classes)
    return nn.Sequential(layers)


def lfw3_net(options: Lfw3NetOptions, input_shape: InputShape, n_classes: int) -> nn.Module:
    conv_options = ConvOptions(channels=(32, 32, 64), pool_after=(1, 2, 3), **options.model_dump())
    return conv(conv_options, input_shape, n_classes)


def m_cifarnet(options: MCifarNetOptions, input_shape: InputShape, n_classes: int) -> nn.Module:
    _check_size(input_shape, 3)
    full_width = (
        _Conv(64, padding=0),
        _Conv(64),
        _Conv(128, stride=2),
        _Conv(128, dropout=options.dropout),
        _Conv(128),
        _Conv(192, stride=2),
        _Conv(192, dropout=options.dropout),
        _Conv(192),
    )
    convs = [conv._replace(channels=_scaled(conv.channels, options.width)) for conv in full_width]
    return _averaged_chain(input_shape[0], convs, n_classes)


VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(options: WidthOptions, input_shape: InputShape, n_classes: int) -> nn.Module:
    _check_size(input_shape, 2 ** len(VGG16_STAGES))
    convs = [
        _Conv(_scaled(channels, options.width), pool=i == len(stage))
        for stage in VGG16_STAGES
        for i, channels in enumerate(stage, 1)
    ]
    return _averaged_chain(input_shape[0], convs, n_classes)


def resnet18(options: WidthOptions, input_shape: InputShape, n_classes: int) -> nn.Module:
    channels = [_scaled(c, options.width) for c in (64, 128, 256, 512)]
    return resnet(
        input_shape[0], n_classes, channels=channels, blocks=2, make_shortcut=projection_shortcut
    )


def thin_resnet(
    options: WidthOptions, input_shape: InputShape, n_classes: int, *, blocks: int
) -> nn.Module:
    channels = [_scaled(c, options.width) for c in (16, 32, 64)]
    return resnet(
        input_shape[0], n_classes, channels=channels, blocks=blocks, make_shortcut=PaddingShortcut
    )
