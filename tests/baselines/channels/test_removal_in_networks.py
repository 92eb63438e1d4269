"""Channels leave transformers, and networks in which modules and weights are shared."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from small_networks import Net, backbone, conv, images, pooled
from torch import Tensor, nn

from baselines.channels.channel_groups import NONE, channel_groups
from baselines.channels.channel_removal import remove_channels
from testbed.network_file import load_network, save_network


def encoder(net: Net, x: Tensor) -> Tensor:
    tokens = net.patches(x).flatten(2).transpose(1, 2) + net.positions
    return net.fc(net.encoder(tokens).mean(dim=1))


def transformer(norm_first: bool = True) -> Net:
    model = Net(
        encoder,
        patches=nn.Conv2d(3, 16, 4, 4),
        encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first), 2,
            enable_nested_tensor=False,
        ),
        fc=nn.Linear(16, 2),
    )  # fmt: skip
    model.positions = nn.Parameter(torch.randn(1, 4, 16))
    return model


def test_attention_loses_whole_heads_and_an_mlp_hidden_units(tmp_path: Path) -> None:
    model = transformer().double().eval()
    x = images(torch.float64, size=8)
    groups = channel_groups(model, x)
    sizes = {name: group.channels for name, group in groups.items()}
    layers = [f"encoder.layers.{n}" for n in (0, 1)]
    expected = {f"{layer}.self_attn.in_proj": 4 for layer in layers}
    assert sizes == expected | {f"{layer}.linear1": 24 for layer in layers}
    smaller = remove_channels(
        model, x, groups, {f"{layers[0]}.self_attn.in_proj": [1, 2], f"{layers[1]}.linear1": [0]}
    )
    attention = smaller.get_submodule(f"{layers[0]}.self_attn")
    assert attention.in_proj_weight.shape == (3 * 8, 16)
    assert attention.out_proj.weight.shape == (16, 8) and attention.num_heads == 2
    expected = copy.deepcopy(model)
    expected.get_submodule(f"{layers[0]}.self_attn").out_proj.weight.data[:, 4:12] = 0
    expected.get_submodule(f"{layers[1]}.linear2").weight.data[:, 0] = 0
    with torch.no_grad():
        got = smaller(x)
        assert (got - expected(x)).abs().max() < 1e-9
    smaller.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in smaller.parameters())
    save_network(smaller, tmp_path / "n.safetensors")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "n.safetensors", model).eval()(x), got)


def test_with_scope_all_a_transformer_loses_its_width_as_well(tmp_path: Path) -> None:
    model = transformer(norm_first=False).double().eval()
    x = images(torch.float64, size=8)
    groups = channel_groups(model, x, scope="all")
    assert groups["patches"].channels == 16
    assert len(groups["patches"].writers) == 1 + 2 * 2
    smaller = remove_channels(model, x, groups, {"patches": range(4)})
    assert smaller.positions.shape == (1, 4, 12)
    assert smaller.get_submodule("encoder.layers.1.norm2").normalized_shape == (12,)
    save_network(smaller, tmp_path / "n.safetensors")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "n.safetensors", model).eval()(x), smaller(x))


def test_shared_weights_stay_shared_and_lose_the_same() -> None:
    layers = {name: conv(3 if name == "a" else 8, 8) for name in "abcd"}
    model = Net(
        lambda net, x: net.fc(pooled(net.d(net.c(net.b(net.a(x)).relu()).relu()))),
        **layers,
        fc=nn.Linear(8, 2),
    )
    model.c.weight = model.b.weight
    groups = channel_groups(model, images(size=8))
    assert [w.layer for w in groups["a"].writers] == ["a", "b", "c"] or "b" in groups["a"].readers
    smaller = remove_channels(model, images(size=8), groups, {"a": [1, 5]})
    assert smaller.b.weight is smaller.c.weight and smaller.b.weight.shape == (6, 6, 3, 3)


def test_a_module_called_twice_loses_the_same_both_times() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.b(net.b(net.a(x)).relu()))),
        a=conv(3, 6), b=conv(6, 6), fc=nn.Linear(6, 2),
    )  # fmt: skip
    groups = channel_groups(model, images(size=8))
    assert list(groups) == ["a"] and groups["a"].channels == 6
    smaller = remove_channels(model, images(size=8), groups, {"a": [0]})
    assert smaller.b.weight.shape == (5, 5, 3, 3) and smaller.fc.in_features == 5


def test_functional_convs_and_parameters_of_a_module_lose_channels() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(F.conv2d(net.a(x) * net.scale, net.w, net.shift).relu())),
        a=conv(3, 6), fc=nn.Linear(4, 2),
    )  # fmt: skip
    model.scale = nn.Parameter(torch.rand(6, 1, 1))
    model.w, model.shift = nn.Parameter(torch.randn(4, 6, 3, 3)), nn.Parameter(torch.randn(4))
    model.register_buffer("mean", torch.zeros(6))
    groups = channel_groups(model, images(size=8))
    assert list(groups) == ["a", "w"]
    smaller = remove_channels(model, images(size=8), groups, {"a": [0], "w": [3]})
    assert smaller.scale.shape == (5, 1, 1) and smaller.w.shape == (3, 5, 3, 3)
    assert smaller.shift.shape == (3,) and smaller.mean.shape == (6,)


def test_outputs_in_a_dictionary_or_tuple_are_outputs() -> None:
    for wrapped in (lambda y: {"logits": y}, lambda y: (y, [y])):
        model = Net(
            lambda net, x, wrapped=wrapped: wrapped(net.fc(pooled(net.a(x)))),
            a=conv(3, 6), fc=nn.Linear(6, 2),
        )  # fmt: skip
        groups = channel_groups(model, images(size=8))
        assert list(groups) == ["a"]
        assert remove_channels(model, images(size=8), groups, {"a": [0]}).fc.in_features == 5


def test_numbers_that_a_module_holds_follow_the_channels(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 6
            self.a, self.b = conv(3, 6), conv(6, 4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).reshape(len(x), self.width, *x.shape[2:])
            return self.fc(pooled(self.b(x)))

    model = Fixed()
    x = images(size=8)
    groups = channel_groups(model, x)
    smaller = remove_channels(model, x, groups, {"a": [0, 1]})
    assert smaller.width == 4
    save_network(smaller, tmp_path / "n.safetensors")
    assert load_network(tmp_path / "n.safetensors", model).width == 4


def test_the_given_network_and_its_modes_stay_as_they_are() -> None:
    model = backbone("conv")
    model.get_submodule("norm2").eval()  # as a user who freezes statistics would have it
    model.get_submodule("conv3").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    groups = channel_groups(model, images())
    smaller = remove_channels(model, images(), groups, {"conv2": [0, 7], "conv3": [1]})
    for network in (model, smaller):
        assert network.training and not network.get_submodule("norm2").training
        frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        assert frozen == {"conv3.weight"}
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {p.data_ptr() for p in smaller.parameters()}


@pytest.mark.parametrize(
    ("channels", "message"),
    [([0, 0], "different"), ([32], "from 0 to 31"), ([-1], "from 0"), (range(32), "all 32")],
)
def test_wrong_channels_are_refused(channels: list[int], message: str) -> None:
    model = backbone("conv")
    with pytest.raises(ValueError, match=message):
        remove_channels(model, images(), channel_groups(model, images()), {"conv1": channels})


def test_an_unknown_group_is_refused_with_the_nearest() -> None:
    model = backbone("conv")
    with pytest.raises(ValueError, match=r"'conv0'\. Did you mean 'conv"):
        remove_channels(model, images(), channel_groups(model, images()), {"conv0": [0]})


def test_entries_that_no_channel_of_a_group_owns_are_marked() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.last(torch.cat([x, net.a(x)], 1)))),
        a=conv(3, 2), last=conv(5, 3), fc=nn.Linear(3, 2),
    )  # fmt: skip
    group = channel_groups(model, images(size=8))["a"]
    assert group.readers["last"].channels.tolist() == [NONE, NONE, NONE, 0, 1]
