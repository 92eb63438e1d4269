"""Which convs can lose channels, and that the smaller network is the masked one."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.utils import prune
from torch_pruning.dependency import index_mapping

from baselines.channels.channel_graph import inputs_by_channel, prunable_convs, prunable_layers
from baselines.channels.channel_removal import n_removed, remove_channels
from baselines.channels.keep_ratio import channels_to_remove
from testbed.backbones import BACKBONES, build_backbone
from testbed.cost import count_multiplications

BLOCKS = {"resnet18": (2, 4), "resnet20": (3, 3), "resnet56": (9, 3)}
CONVS = {"conv": 4, "lfw3_net": 3, "m_cifarnet": 8, "vgg16": 13}


def lived_in(model: nn.Module) -> nn.Module:
    """The same network with norms that shift and scale, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def backbone(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    width = {} if name == "conv" else {"width": 0.25}
    return lived_in(build_backbone(name, (3, 32, 32), 5, **width, **options))


def images(dtype: torch.dtype = torch.float32, size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


class Net(nn.Module):
    """Layers by name, and a forward that a test writes down."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.written_forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written_forward(self, x)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize("name", BLOCKS)
def test_in_residual_networks_only_the_first_conv_of_each_block_is_prunable(name: str) -> None:
    blocks, stages = BLOCKS[name]
    expected = [f"stage{s}.{b}.conv1" for s in range(1, stages + 1) for b in range(blocks)]
    assert list(prunable_convs(backbone(name), images())) == expected


@pytest.mark.parametrize("name", CONVS)
def test_in_chains_every_conv_is_prunable(name: str) -> None:
    model = backbone(name)
    found = prunable_convs(model, images())
    assert list(found) == [f"conv{i}" for i in range(1, CONVS[name] + 1)]
    for layer, prunable in found.items():
        assert prunable.channels == model.get_submodule(layer).out_channels


def test_what_reads_a_channel_is_told_with_how_many_inputs_it_makes() -> None:
    found = prunable_convs(backbone("conv", channels=(4, 6)), images())
    assert found["conv1"].readers == {"conv2": 1}
    assert found["conv2"].readers == {"hidden": 16 * 16}


def test_every_channels_inputs_are_told_apart() -> None:
    model = backbone("conv", channels=(4, 6))
    found = inputs_by_channel(model, images(), "conv2")
    assert found == {"hidden": [list(range(256 * c, 256 * (c + 1))) for c in range(6)]}
    joined = Net(
        lambda net, x: net.fc(
            pooled(net.last(torch.cat([net.a(x), net.b(x)], 1)) + net.side(net.b(x)))
        ),
        a=conv(3, 4),
        b=conv(3, 2),
        last=conv(6, 3),
        side=conv(2, 3),
        fc=nn.Linear(3, 2),
    )
    found = inputs_by_channel(joined, images(), "b")
    assert found == {"last": [[4], [5]], "side": [[0], [1]]}


def test_linear_layers_lose_units_where_that_is_asked_for() -> None:
    model = backbone("conv", channels=(4, 6), hidden=9).eval()
    assert "hidden" not in prunable_convs(model, images())
    found = prunable_layers(model, images(), linear=True)
    assert list(found) == ["conv1", "conv2", "hidden"]
    assert found["hidden"].channels == 9 and found["hidden"].readers == {"classifier": 1}
    smaller = remove_channels(model, images(), {"hidden": [0, 8], "conv2": [1]})
    hidden = smaller.get_submodule("hidden")
    assert (hidden.in_features, hidden.out_features) == (5 * 256, 7)
    kept = [i for i in range(6 * 256) if i // 256 != 1]
    assert torch.equal(hidden.weight, model.get_submodule("hidden").weight[1:8][:, kept])
    with pytest.raises(ValueError, match="network's output"):
        remove_channels(model, images(), {"classifier": [0]})


@pytest.mark.parametrize("name", BACKBONES)
def test_a_removed_network_gives_the_same_as_the_masked_dense_one(name: str) -> None:
    model = backbone(name).double().eval()
    example = images(torch.float64)
    removed = {
        layer: list(range(1, prunable.channels, 3))
        for layer, prunable in prunable_convs(model, example).items()
    }
    smaller = remove_channels(model, example, removed)
    for layer, channels in removed.items():
        # In every backbone the ReLU of a conv is named after it; pooling and dropout keep zeros.
        relu = model.get_submodule(layer.replace("conv", "relu"))
        relu.register_forward_hook(
            lambda _, __, out, c=channels: out.index_fill(1, torch.tensor(c), 0)
        )
    with torch.no_grad():
        expected, got = model(example), smaller(example)
    assert (got - expected).abs().max() < 1e-9
    assert expected.std() > 1e-6  # the comparison is not one of constants
    for layer, channels in removed.items():
        conv = smaller.get_submodule(layer)
        assert conv.out_channels == conv.weight.shape[0]
        assert conv.out_channels == model.get_submodule(layer).out_channels - len(channels)


def test_the_given_network_and_its_modes_stay_as_they_are() -> None:
    model = backbone("conv")
    model.get_submodule("norm2").eval()  # as a user who freezes statistics would have it
    model.get_submodule("conv3").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    smaller = remove_channels(model, images(), {"conv2": [0, 7], "conv3": [1]})
    for network in (model, smaller):
        assert network.training and not network.get_submodule("norm2").training
        frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        assert frozen == {"conv3.weight"}
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_frozen_networks_can_be_pruned_where_no_gradients_are_wanted() -> None:
    model = backbone("conv").requires_grad_(False)
    with torch.no_grad():
        smaller = remove_channels(model, images(), {"conv1": [0]})
    assert smaller.get_submodule("conv1").out_channels == 31
    assert not any(p.requires_grad for p in smaller.parameters())


def test_depthwise_convs_lose_the_channels_that_reach_them() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.point(net.depth(net.first(x))))),
        first=conv(3, 6),
        depth=conv(6, 6, groups=6),
        point=conv(6, 4),
        fc=nn.Linear(4, 2),
    )
    found = prunable_convs(model, images())
    assert found["first"].depthwise == ("depth",) and found["first"].readers == {"point": 1}
    smaller = remove_channels(model, images(), {"first": [0, 5]})
    assert smaller.get_submodule("depth").groups == 4
    assert smaller.get_submodule("point").in_channels == 4


def test_layers_that_are_concatenated_are_pruned_each_for_itself() -> None:
    model = Net(
        lambda net, x: net.fc(net.last(torch.cat([net.a(x), net.b(x)], 1)).relu().flatten(1)),
        a=conv(3, 4),
        b=conv(3, 6),
        last=conv(10, 3),
        fc=nn.Linear(3 * 64, 2),
    )
    example = images(size=8)
    smaller = remove_channels(model, example, {"b": [0, 1], "a": [3], "last": [1]})
    kept = [0, 1, 2, 6, 7, 8, 9]
    expected = model.get_submodule("last").weight[[0, 2]][:, kept]
    assert torch.equal(smaller.get_submodule("last").weight, expected)


def refused() -> dict[str, tuple[nn.Module, str, str]]:
    """What is asked for -> network, layer, what the error says."""
    split = Net(
        lambda net, x: net.fc(pooled(net.grouped(net.first(x)))),
        first=conv(3, 4),
        grouped=conv(4, 6, groups=2),
        fc=nn.Linear(6, 2),
    )
    normed = Net(
        lambda net, x: net.fc(pooled(net.norm(net.first(x)))),
        first=conv(3, 4),
        norm=nn.GroupNorm(2, 4),
        fc=nn.Linear(4, 2),
    )
    unused = Net(
        lambda net, x: net.fc(pooled(net.first(x))),
        first=conv(3, 4),
        idle=conv(3, 4),
        fc=nn.Linear(4, 2),
    )
    fully = Net(lambda net, x: pooled(net.last(net.first(x))), first=conv(3, 4), last=conv(4, 2))
    gated = Net(
        lambda net, x: net.fc(
            pooled(net.first(x) * net.gate(pooled(x)).sigmoid()[:, :, None, None])
        ),
        first=conv(3, 4),
        gate=nn.Linear(3, 4),
        fc=nn.Linear(4, 2),
    )
    halves = Net(
        lambda net, x: net.fc(pooled(net.first(x)[:, :2])), first=conv(3, 4), fc=nn.Linear(2, 2)
    )
    input_sum = Net(
        lambda net, x: net.fc(pooled(x + net.first(x))), first=conv(3, 3), fc=nn.Linear(3, 2)
    )
    return {
        "sum with the input": (input_sum, "first", "added to the network's input"),
        "residual sum": (backbone("resnet20"), "stage1.0.conv2", "coupled with"),
        "stem of a residual network": (backbone("resnet20"), "conv", "coupled with"),
        "shortcut": (backbone("resnet18"), "stage2.0.shortcut.conv", "coupled with"),
        "gate": (gated, "first", "coupled with 'gate'"),
        "grouped": (split, "grouped", "grouped conv of 2 groups"),
        "read by a grouped conv": (split, "first", "the grouped conv 'grouped' reads it"),
        "group norm": (normed, "first", r"'norm' \(GroupNorm\)"),
        "slice": (halves, "first", "slice takes several"),
        "output": (fully, "last", "network's output"),
        "unused": (unused, "idle", "forward pass does not run it"),
        "linear output": (unused, "fc", "network's output"),
        "norm": (normed, "norm", "it is a GroupNorm, not a Conv2d or Linear"),
        "unknown": (unused, "frist", "unknown layer 'frist'. Did you mean 'first'"),
    }


@pytest.mark.parametrize("case", refused())
def test_a_layer_that_cannot_be_pruned_is_named_with_the_reason(case: str) -> None:
    model, layer, reason = refused()[case]
    with pytest.raises(ValueError, match=reason) as caught:
        remove_channels(model, images(), {layer: [0]})
    assert repr(layer) in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "message"),
    [([0, 0], "different"), ([32], "from 0 to 31"), ([-1], "from 0"), (range(32), "all 32")],
)
def test_wrong_channels_are_refused(channels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove_channels(backbone("conv"), images(), {"conv1": channels})


def test_a_network_without_a_prunable_conv_says_what_holds_each() -> None:
    model = Net(lambda net, x: pooled(net.only(x)), only=conv(3, 4))
    with pytest.raises(ValueError, match="only: its channels are the network's output"):
        prunable_convs(model, images())
    with pytest.raises(ValueError, match="It has no conv"):
        prunable_convs(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), images())


def test_a_network_that_cannot_be_traced_says_so() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 32, 32\) raises RuntimeError"):
        prunable_convs(nn.Sequential(conv(4, 8), conv(8, 8)), images())


def test_layers_that_treat_each_channel_alone_are_passed() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.last(net.slope(net.norm(net.first(x))) * net.scale))),
        first=conv(3, 6),
        norm=nn.InstanceNorm2d(6, affine=True),
        slope=nn.PReLU(6),
        last=conv(6, 4),
        fc=nn.Linear(4, 2),
    )
    model.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
    smaller = remove_channels(model, images(), {"first": [1, 4]})
    assert torch.equal(smaller.scale, model.scale[:, [0, 2, 3, 5]])
    assert len(smaller.slope.weight) == len(smaller.norm.weight) == 4


def shuffled(net: Net, x: Tensor) -> Tensor:
    x = net.second(net.first(x))
    return net.fc(F.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1))  # channels last


def fixed_width(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.second(net.first(x)).reshape(len(x), 4, 32 * 32).mean(dim=2))


@pytest.mark.parametrize(("forward", "inputs"), [(shuffled, 16), (fixed_width, 4)])
def test_a_removal_that_would_go_wrong_is_an_error_that_names_the_layer(
    forward: Callable[[Net, Tensor], Tensor], inputs: int
) -> None:
    model = Net(forward, first=conv(3, 6), second=conv(6, 4), fc=nn.Linear(inputs, 2))
    with pytest.raises(ValueError, match=r"'second': the smaller network (gives|raises)") as caught:
        remove_channels(model, images(), {"first": [0], "second": [0]})
    assert "'first'" not in str(caught.value)


def channels_shuffled(net: Net, x: Tensor) -> Tensor:
    """Two units of a ShuffleNet (Ma et al. 2018): half of the channels pass by, then all mix."""
    x = net.stem(x)
    for unit in ("1", "2"):
        passing, changed = x.chunk(2, dim=1)
        for layer in ("into", "depth", "back"):
            changed = net.get_submodule(layer + unit)(changed)
        joined = torch.cat([passing, changed], dim=1)
        n, channels, *size = joined.shape
        x = joined.view(n, 2, channels // 2, *size).transpose(1, 2).reshape(joined.shape)
    return net.fc(pooled(x))


def test_a_channel_shuffle_holds_the_channels_that_it_mixes_and_no_others() -> None:
    model = Net(
        channels_shuffled,
        stem=conv(3, 8),
        **{f"into{unit}": nn.Conv2d(4, 6, 1) for unit in (1, 2)},
        **{f"depth{unit}": conv(6, 6, groups=6) for unit in (1, 2)},
        **{f"back{unit}": nn.Conv2d(6, 4, 1) for unit in (1, 2)},
        fc=nn.Linear(8, 2),
    )
    assert list(prunable_convs(model, images())) == ["into1", "into2"]
    smaller = remove_channels(model, images(), {"into1": [0, 2], "into2": [5]})
    assert smaller.get_submodule("depth1").groups == 4
    assert smaller.get_submodule("back2").in_channels == 5
    with pytest.raises(ValueError, match=r"of 'back1': a reshape of more than four dimensions"):
        remove_channels(model, images(), {"back1": [0]})


def test_many_concatenations_do_not_make_a_graph_slow() -> None:
    """What a channel reaches is looked up: no work on the whole graph for each layer asked."""

    def dense_block(net: Net, x: Tensor) -> Tensor:
        for number in range(24):
            x = torch.cat([x, net.get_submodule(f"conv{number}")(x)], dim=1)
        return net.fc(pooled(x))

    model = Net(
        dense_block,
        **{f"conv{number}": conv(3 + 2 * number, 2) for number in range(24)},
        fc=nn.Linear(3 + 2 * 24, 2),
    )
    example = images(size=8)
    with pytest.MonkeyPatch.context() as patch:
        calls: list[object] = []
        real = index_mapping.update_index_mapping
        patch.setattr(
            index_mapping, "update_index_mapping", lambda graph: (calls.append(graph), real(graph))
        )
        found = prunable_convs(model, example)
    assert len(found) == 24 and len(calls) == 1
    assert found["conv0"].readers == {**{f"conv{n}": 1 for n in range(1, 24)}, "fc": 1}
    smaller = remove_channels(model, example, {f"conv{n}": [n % 2] for n in range(24)})
    assert smaller.get_submodule("fc").in_features == 3 + 24


def test_the_number_removed_is_that_of_ln_structured() -> None:
    for channels in range(2, 65):
        for keep_ratio in (0.05, 0.1, 0.25, 0.3, 0.5, 0.625, 0.7, 0.75, 0.9, 0.95):
            layer = nn.Linear(1, channels, bias=False)  # each row is a filter of one weight
            prune.ln_structured(layer, "weight", amount=1 - keep_ratio, n=1, dim=0)
            theirs = int((layer.weight_mask == 0).sum())
            assert n_removed(keep_ratio, channels) == min(theirs, channels - 1)
    assert n_removed(0.01, 8) == 7
    assert [n_removed(0.5, c) for c in (1, 3, 5, 7)] == [0, 2, 2, 4]  # halves go to even numbers


@pytest.mark.parametrize("name", ["conv", "vgg16", "resnet18", "resnet20"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_share_of_multiplications_is_reached(name: str, share: float) -> None:
    model, example = backbone(name), images()
    _, counts = channels_to_remove(model, example, None, share)
    thinned = remove_channels(model, example, {layer: range(n) for layer, n in counts.items()})
    dense = count_multiplications(model, example).multiplications
    reached = count_multiplications(thinned, example).multiplications / dense
    assert reached == pytest.approx(share, rel=0.1)


def test_the_nearest_keep_ratio_is_found() -> None:
    # With conv 1 of 4 channels and conv 2 of 8, at 8 x 8 pixels: 27 c1 * 64 + 9 c1 c2 * 64 + 2 c2.
    model = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)))),
        first=conv(3, 4),
        second=conv(4, 8),
        fc=nn.Linear(8, 2),
    )
    dense = 27 * 4 * 64 + 9 * 4 * 8 * 64 + 2 * 8
    wanted = (27 * 3 * 64 + 9 * 3 * 6 * 64 + 2 * 6) / dense
    _, counts = channels_to_remove(model, images(size=8), None, wanted)
    assert counts == {"first": 1, "second": 2}


def test_a_share_that_cannot_be_reached_is_refused_with_the_range() -> None:
    # One channel each: 27 * 64 + 9 * 64 + 2 multiplications of 27 * 2 * 64 + 9 * 4 * 64 + 2 * 2.
    model = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)))),
        first=conv(3, 2),
        second=conv(2, 2),
        fc=nn.Linear(2, 2),
    )
    smallest = (27 * 64 + 9 * 64 + 2) / (27 * 2 * 64 + 9 * 4 * 64 + 2 * 2)
    message = rf"comes to is {smallest:.3g}, in a range from {smallest:.3g} \(one"
    with pytest.raises(ValueError, match=message):
        channels_to_remove(model, images(size=8), None, 0.1)


def test_a_share_out_of_reach_is_refused_with_the_dearest_layers_that_stay_whole() -> None:
    model = backbone("resnet20")
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        channels_to_remove(model, images(), None, 0.1)
    message = str(caught.value)
    costs = count_multiplications(model, images()[:1]).per_layer
    held = {n: int(c) for n, c in costs.items() if "conv" in n and not n.endswith("conv1")}
    named = re.findall(r"(\S+): it is coupled with", message)
    assert sorted(held[name] for name in named) == sorted(held.values())[-len(named) :]
    assert f"and {len(held) - len(named)} layers more" in message
    assert "Ask for a share in that range" in message


def test_keeping_less_than_all_is_never_a_silent_nothing() -> None:
    with pytest.raises(ValueError, match="removes nothing"):
        channels_to_remove(backbone("conv", channels=(4, 8)), images(), 0.99, None)
    assert not any(channels_to_remove(backbone("conv"), images(), 1.0, None)[1].values())
    assert not any(channels_to_remove(backbone("conv"), images(), None, 1.0)[1].values())
