"""Every layer of torch: followed, and then the same masked and skipped; or refused."""

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import channel_flow
from rnp.structure.channel_order import order_channels

CHANNELS = 8
Make = Callable[[], nn.Module]

KEEPS_CHANNELS_APART: dict[str, Make] = {
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(3),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(3),
    "AlphaDropout": lambda: nn.AlphaDropout(0.3),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "BatchNorm2d": lambda: nn.BatchNorm2d(CHANNELS),
    "CELU": lambda: nn.CELU(0.7),
    "CircularPad2d": lambda: nn.CircularPad2d(1),
    "ConstantPad1d": lambda: nn.ConstantPad1d(1, 0.5),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 0.5),
    "Dropout": lambda: nn.Dropout(0.3),
    "Dropout1d": lambda: nn.Sequential(nn.Flatten(2), nn.Dropout1d(0.3), nn.Unflatten(2, (8, -1))),
    "Dropout2d": lambda: nn.Dropout2d(0.3),
    "ELU": lambda: nn.ELU(0.7),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.3),
    "Flatten": lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, -1))),
    "GELU": lambda: nn.GELU("tanh"),
    "Hardshrink": nn.Hardshrink,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardswish": lambda: nn.Hardswish(inplace=True),
    "Hardtanh": nn.Hardtanh,
    "Identity": nn.Identity,
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "LeakyReLU": lambda: nn.LeakyReLU(inplace=True),
    "LogSigmoid": nn.LogSigmoid,
    "MaxPool2d": lambda: nn.MaxPool2d(3, 2, 1),
    "Mish": nn.Mish,
    "PReLU": lambda: nn.PReLU(CHANNELS),
    "RReLU": nn.RReLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d((1, 0, 2, 1)),
    "SELU": nn.SELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Softplus": nn.Softplus,
    "Softshrink": nn.Softshrink,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
    "Tanhshrink": nn.Tanhshrink,
    "Threshold": lambda: nn.Threshold(0.1, 0.2),
    "Unflatten": lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (4, -1))),
    "Upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(size=(5, 7)),
    "ZeroPad1d": lambda: nn.ZeroPad1d(1),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "one slope": nn.PReLU,
    "instance norm without weights": lambda: nn.InstanceNorm2d(CHANNELS),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(CHANNELS, track_running_stats=True),
    "softmax over a row": lambda: nn.Softmax(dim=3),
}
MINGLES: dict[str, Make] = {
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "ConstantPad3d": lambda: nn.ConstantPad3d(1, 0.0),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
    "CrossMapLRN2d": lambda: nn.CrossMapLRN2d(3),
    "FractionalMaxPool2d": lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5),
    "GLU": lambda: nn.GLU(dim=1),
    "GroupNorm": lambda: nn.GroupNorm(2, CHANNELS),
    "LayerNorm": lambda: nn.LayerNorm((CHANNELS, 8, 8)),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "LogSoftmax": lambda: nn.LogSoftmax(dim=1),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "PixelUnshuffle": lambda: nn.PixelUnshuffle(2),
    "RMSNorm": lambda: nn.RMSNorm((CHANNELS, 8, 8)),
    "Softmax": lambda: nn.Softmax(dim=1),
    "Softmax2d": nn.Softmax2d,
    "Softmin": lambda: nn.Softmin(dim=1),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(CHANNELS),
    "ZeroPad3d": lambda: nn.ZeroPad3d(1),
    "a norm of each batch": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "a pooling that also gives places": lambda: nn.MaxPool2d(2, return_indices=True),
}
# Nothing of these takes the maps of a conv alone: sequences, volumes, tokens, pairs, losses, parts.
NOT_ON_MAPS = {
    *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose3d", "Linear", "Bilinear"),
    *("AdaptiveAvgPool1d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool3d"),
    *("AvgPool1d", "AvgPool3d", "MaxPool1d", "MaxPool3d", "LPPool1d", "LPPool3d"),
    *("FractionalMaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "Dropout3d"),
    *("BatchNorm1d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm3d"),
    *("CircularPad1d", "CircularPad3d", "ReflectionPad1d", "ReflectionPad3d"),
    *("ReplicationPad1d", "ReplicationPad3d", "Fold", "Unfold", "Embedding", "EmbeddingBag"),
    *("RNN", "RNNBase", "RNNCell", "RNNCellBase", "LSTM", "LSTMCell", "GRU", "GRUCell"),
    *("MultiheadAttention", "Transformer", "TransformerDecoder", "TransformerDecoderLayer"),
    *("TransformerEncoder", "TransformerEncoderLayer", "CosineSimilarity", "PairwiseDistance"),
    *("AdaptiveLogSoftmaxWithLoss", "NonDynamicallyQuantizableLinear"),
    *("Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"),
    *("Container", "DataParallel", "NLLLoss2d"),
}


def layers_of_torch() -> Iterator[str]:
    for name, value in vars(nn).items():
        is_layer = isinstance(value, type) and issubclass(value, nn.Module)
        if is_layer and not name.startswith("Lazy") and not name.endswith("Loss"):
            yield name


class Around(nn.Module):
    """Two convs, the layer that is looked at, and what reads it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, CHANNELS, 3, padding=1)
        self.layer, self.reader = layer, nn.Conv2d(CHANNELS, 5, 1)
        self.classifier = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(
            self.reader(self.layer(self.second(self.first(images)))).mean((2, 3))
        )
        return logits


def around(layer: nn.Module) -> nn.Module:
    """The network with weights, slopes and statistics that differ from channel to channel."""
    torch.manual_seed(0)
    network = Around(layer)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(cast(Tensor, tensor.data), 0.5, 2)
    return network


def test_every_layer_of_this_torch_is_in_one_of_the_lists() -> None:
    """A new one is to be put where it belongs; what decides is never a list, but a trial."""
    listed = {*KEEPS_CHANNELS_APART, *MINGLES, *NOT_ON_MAPS}
    assert set(layers_of_torch()) - listed == set()


@pytest.mark.parametrize("name", KEEPS_CHANNELS_APART)
def test_what_keeps_channels_apart_gives_the_same_masked_and_skipped(name: str) -> None:
    network = RuntimeNetwork(around(KEEPS_CHANNELS_APART[name]()), groups=4).eval()
    (pruned,) = (conv for conv in network.flow.convs if conv.name == "second")
    assert dict(pruned.readers) == {"reader": 1}
    images = torch.randn(12, 2, 8, 8)
    actions = torch.randint(4, (12, len(network.flow.convs)))
    with torch.no_grad():
        masked = network.masked(images, actions)
    torch.testing.assert_close(network.skipping(images, actions), masked, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KEEPS_CHANNELS_APART)
def test_channels_put_in_another_order_give_the_same_logits(name: str) -> None:
    network, images = around(KEEPS_CHANNELS_APART[name]()).eval(), torch.randn(4, 2, 8, 8)
    with torch.no_grad():
        before = network(images)
        order_channels(network, channel_flow(network, 4))
        torch.testing.assert_close(network(images), before)


@pytest.mark.parametrize("name", MINGLES)
def test_what_mingles_channels_keeps_the_conv_before_it_whole(name: str) -> None:
    network = around(MINGLES[name]())
    try:
        found = {conv.name for conv in channel_flow(network, 4).convs}
    except ValueError as refused:
        assert "second: 'layer' " in str(refused)
        found = set()
    assert "second" not in found
