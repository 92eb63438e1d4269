"""The network without channels is the whole one with these channels at zero."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from small_networks import Net, backbone, conv, images, lived_in, pooled
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from baselines.channels.channel_groups import ChannelGroups, channel_groups
from baselines.channels.channel_removal import remove_channels
from testbed.backbones import BACKBONES
from testbed.cost import multiplications_by_layer
from testbed.network_file import load_network, save_network


def every_third(groups: ChannelGroups) -> dict[str, range]:
    return {name: range(1, group.channels, 3) for name, group in groups.items()}


def masked_at_readers(
    model: nn.Module, groups: ChannelGroups, removed: dict[str, range], x: Tensor
) -> Tensor:
    """What `model` gives where every layer that reads a removed channel sees zeros."""
    hooks = []
    for name, channels in removed.items():
        for reader, of_inputs in groups[name].readers.items():
            layer = model.get_submodule(reader)
            inputs = torch.tensor([i for i, c in enumerate(of_inputs.channels) if c in channels])

            def mask(layer: nn.Module, seen: tuple[Tensor], inputs: Tensor = inputs) -> Tensor:
                dim = -1 if isinstance(layer, nn.Linear) else 1
                return seen[0].index_fill(dim, inputs, 0)

            if len(inputs):
                hooks.append(layer.register_forward_pre_hook(mask))
    with torch.no_grad():
        result: Tensor = model(x)
    for hook in hooks:
        hook.remove()
    return result


@pytest.mark.parametrize("scope", ["inside_blocks", "all"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_smaller_backbone_gives_the_same_as_the_masked_dense_one(name: str, scope: str) -> None:
    model = backbone(name).double().eval()
    example = images(torch.float64)
    groups = channel_groups(model, example, scope=scope)
    removed = every_third(groups)
    smaller = remove_channels(model, example, groups, removed)
    expected = masked_at_readers(model, groups, removed, example)
    with torch.no_grad():
        assert (smaller(example) - expected).abs().max() < 1e-9
    assert expected.std() > 1e-6  # the comparison is not one of constants
    for name, channels in removed.items():
        layer = smaller.get_submodule(name)
        assert layer.out_channels == layer.weight.shape[0]
        dense = model.get_submodule(name).out_channels
        assert layer.out_channels <= dense - len(channels)


def chain(layer: nn.Module, dims: int = 2, channels: int = 12, factor: int = 1) -> nn.Module:
    """Conv, layer, conv, classifier, on one vector, sequence, map or volume for each image."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]

    def forward(net: Net, x: Tensor) -> Tensor:
        x = (
            x.mean(dim=3)
            if dims == 1
            else x.unsqueeze(2).expand(-1, -1, 2, -1, -1)
            if dims == 3
            else x
        )
        return net.fc(pooled(net.last(net.layer(net.first(x)))))

    return Net(
        forward,
        first=kind(3, 12, 3, padding=1),
        layer=layer,
        last=kind(channels * factor, 4, 1),
        fc=nn.Linear(4, 2),
    )


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: chain(nn.Conv1d(12, 12, 3, padding=1), 1),
    "Conv2d": lambda: chain(nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular")),
    "Conv3d": lambda: chain(nn.Conv3d(12, 12, 3, padding=1), 3),
    "ConvTranspose1d": lambda: chain(nn.ConvTranspose1d(12, 12, 2, 2), 1),
    "ConvTranspose2d": lambda: chain(nn.ConvTranspose2d(12, 12, 2, 2)),
    "ConvTranspose3d": lambda: chain(nn.ConvTranspose3d(12, 12, 2, 2), 3),
    "grouped Conv1d": lambda: chain(nn.Conv1d(12, 12, 3, groups=4), 1),
    "grouped Conv2d": lambda: chain(nn.Conv2d(12, 12, 3, groups=6)),
    "Conv2d of few groups": lambda: chain(nn.Conv2d(12, 24, 3, groups=2), factor=2),
    "grouped Conv3d": lambda: chain(nn.Conv3d(12, 12, 1, groups=3), 3),
    "grouped ConvTranspose2d": lambda: chain(nn.ConvTranspose2d(12, 12, 2, 2, groups=2)),
    "ConvTranspose2d of many groups": lambda: chain(
        nn.ConvTranspose2d(12, 24, 2, groups=6), factor=2
    ),
    "depthwise Conv2d": lambda: chain(nn.Conv2d(12, 12, 3, groups=12)),
    "depthwise Conv2d with a multiplier": lambda: chain(nn.Conv2d(12, 24, 3, groups=12), factor=2),
    "depthwise ConvTranspose2d": lambda: chain(nn.ConvTranspose2d(12, 12, 3, groups=12)),
    "BatchNorm1d": lambda: chain(nn.BatchNorm1d(12), 1),
    "BatchNorm2d": lambda: chain(nn.BatchNorm2d(12)),
    "BatchNorm2d without weights": lambda: chain(nn.BatchNorm2d(12, affine=False)),
    "BatchNorm2d of each batch": lambda: chain(nn.BatchNorm2d(12, track_running_stats=False)),
    "BatchNorm3d": lambda: chain(nn.BatchNorm3d(12), 3),
    "SyncBatchNorm": lambda: chain(nn.SyncBatchNorm(12)),
    "InstanceNorm1d": lambda: chain(nn.InstanceNorm1d(12, affine=True), 1),
    "InstanceNorm2d": lambda: chain(nn.InstanceNorm2d(12)),
    "InstanceNorm2d with statistics": lambda: chain(
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True)
    ),
    "InstanceNorm3d": lambda: chain(nn.InstanceNorm3d(12, affine=True), 3),
    "GroupNorm of many groups": lambda: chain(nn.GroupNorm(6, 12)),
    "GroupNorm of single channels": lambda: chain(nn.GroupNorm(12, 12)),
    "PReLU": lambda: chain(nn.PReLU(12)),
    "PReLU of one slope": lambda: chain(nn.PReLU()),
    "GLU": lambda: chain(nn.GLU(1), channels=6),
    "PixelShuffle": lambda: chain(nn.PixelShuffle(2), channels=3),
    "PixelUnshuffle": lambda: chain(nn.PixelUnshuffle(2), factor=4),
    "ChannelShuffle": lambda: chain(nn.ChannelShuffle(3)),
    "Dropout2d": lambda: chain(nn.Dropout2d()),
    "MaxPool2d": lambda: chain(nn.MaxPool2d(2)),
    "AvgPool3d": lambda: chain(nn.AvgPool3d(2), 3),
    "AdaptiveAvgPool2d": lambda: chain(nn.AdaptiveAvgPool2d(3)),
    "AdaptiveMaxPool1d": lambda: chain(nn.AdaptiveMaxPool1d(3), 1),
    "LPPool2d": lambda: chain(nn.LPPool2d(2, 2)),
    "Upsample": lambda: chain(nn.Upsample(scale_factor=2, mode="bilinear")),
    "ReflectionPad2d": lambda: chain(nn.ReflectionPad2d(1)),
    "ReplicationPad3d": lambda: chain(nn.ReplicationPad3d(1), 3),
    "ZeroPad2d": lambda: chain(nn.ZeroPad2d(1)),
    "CircularPad2d": lambda: chain(nn.CircularPad2d(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
def test_every_kind_of_layer_loses_channels_and_can_be_read_again(
    kind: str, tmp_path: Path
) -> None:
    model = lived_in(CHAINS[kind]()).double().eval()
    x = images(torch.float64, size=8)
    groups = channel_groups(model, x)
    removed = {name: range(0, group.channels, 3) for name, group in groups.items()}
    removed = {n: c if len(c) < groups[n].channels else range(0) for n, c in removed.items()}
    smaller = remove_channels(model, x, groups, removed)
    assert "first" in groups and smaller.first.out_channels < 12
    with torch.no_grad():
        got = smaller(x)
        assert (got - masked_at_readers(model, groups, removed, x)).abs().max() < 1e-9
    assert got.std() > 1e-9
    save_network(smaller, tmp_path / "n.safetensors")
    again = load_network(tmp_path / "n.safetensors", model)
    with torch.no_grad():
        assert torch.equal(again(x), got)
    lost = multiplications_by_layer(model, x).total() - multiplications_by_layer(smaller, x).total()
    assert lost > 0
    exported = torch.export.export(smaller, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), got, atol=1e-9)


@pytest.mark.parametrize(
    ("norm", "sizes"),
    [
        (parametrizations.weight_norm, lambda w: w.flatten(1).norm(dim=1)[:, None, None, None]),
        (parametrizations.spectral_norm, None),
    ],
)
def test_weights_made_of_parameters_are_made_of_those_that_stay(
    norm: Callable[[nn.Module], nn.Module], sizes: Callable[[Tensor], Tensor] | None
) -> None:
    model = chain(norm(conv(12, 12))).double().eval()
    x = images(torch.float64, size=8)
    groups = channel_groups(model, x)
    assert list(groups) == ["first", "layer", "last"]
    smaller = remove_channels(model, x, groups, {"first": [0, 5], "layer": [11]})
    assert smaller.layer.weight.shape == (11, 10, 3, 3)
    kept = [i for i in range(12) if i not in (0, 5)]
    if sizes is not None:
        lengths, directions = (
            getattr(model.layer.parametrizations.weight, f"original{n}")[:11] for n in (0, 1)
        )
        expected = lengths * directions[:, kept] / sizes(directions[:, kept])
        assert torch.allclose(smaller.layer.weight, expected)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LocalResponseNorm(3), "across it"),
        (nn.Softmax2d(), "_softmax across it"),
        (parametrizations.orthogonal(nn.Conv2d(12, 12, 1)), "'layer'"),
    ],
)
def test_a_layer_that_mixes_channels_in_its_own_way_holds_them(
    layer: nn.Module, reason: str
) -> None:
    groups = channel_groups(chain(layer), images(size=8))
    assert list(groups) in ([], ["last"]) or "first" not in groups
    assert reason in groups.kept_whole["first"]


class Normed(nn.Module):
    """A conv, a norm over the channels and positions or channels alone, and a conv."""

    def __init__(self, norm: nn.Module, channels_last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = conv(3, 12), norm, conv(12, 4)
        self.fc, self.channels_last = nn.Linear(4, 2), channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x.movedim(1, -1)).movedim(-1, 1) if self.channels_last else self.norm(x)
        return self.fc(pooled(self.last(x)))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    normed = (x - mean) / (variance + norm.eps).sqrt()
    if norm.weight is None:
        return normed
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    mean = x.square().mean(dim=1, keepdim=True)
    return x / (mean + torch.finfo(x.dtype).eps).sqrt() * norm.weight[:, None, None]


def one_group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    parts = []
    for part in x.chunk(norm.num_groups, dim=1):
        variance, mean = torch.var_mean(part, dim=(1, 2, 3), correction=0, keepdim=True)
        parts.append((part - mean) / (variance + norm.eps).sqrt())
    return torch.cat(parts, 1) * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize(
    ("norm", "channels_last", "by_hand"),
    [
        (nn.LayerNorm(12), True, layer_norm),
        (nn.LayerNorm(12, elementwise_affine=False), True, layer_norm),
        (nn.RMSNorm(12), True, rms_norm),
        (nn.GroupNorm(1, 12), False, one_group_norm),
        (nn.GroupNorm(2, 12), False, one_group_norm),
    ],
)
def test_norms_across_channels_are_those_of_the_channels_that_stay(
    norm: nn.Module,
    channels_last: bool,
    by_hand: Callable[[Tensor, nn.Module], Tensor],
    tmp_path: Path,
) -> None:
    model = lived_in(Normed(norm, channels_last)).double().eval()
    x = images(torch.float64, size=8)
    groups = channel_groups(model, x)
    group = groups["first"]
    smaller = remove_channels(model, x, groups, {"first": [0, 2]})
    kept = [i for i, c in enumerate(group.writers[0].channels.tolist()) if c not in (0, 2)]
    with torch.no_grad():
        small_norm = copy.deepcopy(norm).double()
        for name, vector in small_norm._parameters.items():
            if vector is not None:
                small_norm._parameters[name] = nn.Parameter(vector[kept])
        normed = by_hand(model.first(x)[:, kept], small_norm)
        maps = F.conv2d(normed, model.last.weight[:, kept], model.last.bias, padding=1)
        expected = model.fc(pooled(maps))
        got = smaller(x)
    assert (got - expected).abs().max() < 1e-9
    save_network(smaller, tmp_path / "n.safetensors")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "n.safetensors", model)(x), got)
