"""Which layers write the same channels, what reads them, and what must stay whole."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
import torch_pruning
from small_networks import Net, backbone, conv, images, pooled
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroups, channel_groups
from baselines.channels.channel_removal import remove_channels

BLOCKS = {"resnet18": (2, 4), "resnet20": (3, 3), "resnet56": (9, 3)}
CONVS = {"conv": 4, "lfw3_net": 3, "m_cifarnet": 8, "vgg16": 13}


def written_by(groups: ChannelGroups) -> Mapping[str, list[str]]:
    return {name: [w.layer for w in group.writers] for name, group in groups.items()}


@pytest.mark.parametrize("name", BLOCKS)
def test_inside_of_residual_blocks_the_first_conv_of_each_loses_channels(name: str) -> None:
    blocks, stages = BLOCKS[name]
    expected = [f"stage{s}.{b}.conv1" for s in range(1, stages + 1) for b in range(blocks)]
    groups = channel_groups(backbone(name), images())
    assert list(groups) == expected
    assert "residual blocks add to its channels" in groups.kept_whole["stage1.0.conv2"]


def test_with_scope_all_residual_sums_lose_channels_together() -> None:
    groups = channel_groups(backbone("resnet18"), images(), scope="all")
    first_stage = ["conv", "stage1.0.conv2", "stage1.1.conv2"]
    second_stage = ["stage2.0.conv2", "stage2.0.shortcut.conv", "stage2.1.conv2"]
    assert written_by(groups)["conv"] == first_stage
    assert sorted(written_by(groups)["stage2.0.conv2"]) == sorted(second_stage)
    assert set(groups["conv"].readers) == {
        "stage1.0.conv1", "stage1.1.conv1", "stage2.0.conv1", "stage2.0.shortcut.conv",
    }  # fmt: skip


def test_channels_that_a_later_stage_adds_are_a_group_of_their_own() -> None:
    groups = channel_groups(backbone("resnet20"), images(), scope="all")
    sizes = {name: group.channels for name, group in groups.items() if "conv1" not in name}
    assert sizes == {"conv": 4, "stage2.0.conv2": 4, "stage3.0.conv2": 8}
    assert len(groups["conv"].writers) == 10 and len(groups["stage3.0.conv2"].writers) == 3


@pytest.mark.parametrize("name", CONVS)
def test_in_chains_every_conv_is_a_group(name: str) -> None:
    model = backbone(name)
    found = channel_groups(model, images(), scope="all")
    assert list(found) == [f"conv{i}" for i in range(1, CONVS[name] + 1)]
    for layer, group in found.items():
        assert group.channels == model.get_submodule(layer).out_channels


def test_every_channels_inputs_are_told_apart() -> None:
    found = channel_groups(backbone("conv", channels=(4, 6)), images())
    assert found["conv2"].inputs_by_channel("hidden") == [
        list(range(256 * c, 256 * (c + 1))) for c in range(6)
    ]
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
    b = channel_groups(joined, images())["b"]
    assert set(b.readers) == {"last", "side"}
    assert b.inputs_by_channel("last") == [[4], [5]]
    assert b.inputs_by_channel("side") == [[0], [1]]


def test_channels_that_are_flattened_last_are_told_apart_too() -> None:
    model = Net(
        lambda net, x: net.fc(F.adaptive_avg_pool2d(net.a(x), 2).permute(0, 2, 3, 1).flatten(1)),
        a=conv(3, 3),
        fc=nn.Linear(12, 2),
    )
    group = channel_groups(model, images())["a"]
    assert group.inputs_by_channel("fc") == [[c, c + 3, c + 6, c + 9] for c in range(3)]


def test_linear_layers_of_one_vector_lose_outputs_where_that_is_asked_for() -> None:
    model = backbone("conv", channels=(4, 6), hidden=9).eval()
    assert "hidden" not in channel_groups(model, images())
    found = channel_groups(model, images(), flat_linear=True)
    assert list(found) == ["conv1", "conv2", "hidden"]
    assert found["hidden"].channels == 9 and set(found["hidden"].readers) == {"classifier"}
    smaller = remove_channels(model, images(), found, {"hidden": [0, 8], "conv2": [1]})
    hidden = smaller.get_submodule("hidden")
    assert (hidden.in_features, hidden.out_features) == (5 * 256, 7)
    kept = [i for i in range(6 * 256) if i // 256 != 1]
    assert torch.equal(hidden.weight, model.get_submodule("hidden").weight[1:8][:, kept])
    with pytest.raises(ValueError, match="network's output"):
        remove_channels(model, images(), found, {"classifier": [0]})


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (["stage1"], ["stage2.0.conv1", "stage2.1.conv1"]),
        (["stage[12].0.*"], ["stage1.1.conv1", "stage2.1.conv1"]),
        (["stage1.0.conv1", "*.1.conv1"], ["stage2.0.conv1"]),
    ],
)
def test_layers_named_in_keep_are_spared(keep: list[str], left: list[str]) -> None:
    groups = channel_groups(backbone("resnet18"), images(), keep=keep)
    assert [name for name in groups if name < "stage3"] == left
    assert any(reason == "it is named in keep" for reason in groups.kept_whole.values())


def test_a_name_in_keep_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'stag1'\. Did you mean 'stage1'"):
        channel_groups(backbone("resnet18"), images(), keep=["stag1"])


def gated(net: Net, x: Tensor) -> Tensor:
    return net.fc(pooled(net.first(x) * net.gate(pooled(x)).sigmoid()[:, :, None, None]))


def test_a_gate_loses_the_channels_that_it_scales() -> None:
    model = Net(gated, first=conv(3, 4), gate=nn.Linear(3, 4), fc=nn.Linear(4, 2))
    groups = channel_groups(model, images())
    assert written_by(groups) == {"first": ["first", "gate"]}


def held() -> dict[str, tuple[nn.Module, str, str]]:
    """What holds channels -> network, layer, reason."""
    fc = nn.Linear(4, 2)
    unused = Net(
        lambda net, x: net.fc(pooled(net.first(x))), first=conv(3, 4), idle=conv(3, 4), fc=fc
    )
    halves = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)[:, :2]))),
        first=conv(3, 4),
        second=conv(2, 4),
        fc=fc,
    )
    input_sum = Net(
        lambda net, x: net.fc(pooled(net.second(x + net.first(x)))),
        first=conv(3, 3),
        second=conv(3, 4),
        fc=fc,
    )
    fixed_width = Net(
        lambda net, x: net.fc(net.second(net.first(x)).reshape(len(x), 4, 32 * 32).mean(dim=2)),
        first=conv(3, 6),
        second=conv(6, 4),
        fc=fc,
    )
    divided = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)) / net.second.out_channels)),
        first=conv(3, 6),
        second=conv(6, 4),
        fc=fc,
    )
    fourier = Net(
        lambda net, x: net.fc(torch.fft.rfft(pooled(net.second(net.first(x))), dim=1).real),
        first=conv(3, 6),
        second=conv(6, 6),
        fc=fc,
    )
    return {
        "sum with the input": (input_sum, "first", "joins it with a tensor of fixed size"),
        "slice": (halves, "first", "takes a fixed part of it"),
        "output": (unused, "fc", "network's output"),
        "a number in the code": (fixed_width, "second", "without channels of it raises"),
        "a number in the result": (divided, "second", "without channels of it gives outputs"),
        "an operation without a rule": (fourier, "second", "runs _fft_r2c on it"),
    }


@pytest.mark.parametrize("case", held())
def test_a_layer_that_cannot_lose_channels_stays_whole_and_the_others_are_pruned(case: str) -> None:
    model, layer, reason = held()[case]
    groups = channel_groups(model, images())
    assert reason in groups.kept_whole[layer]
    assert layer not in groups and len(groups) >= 1
    with pytest.raises(ValueError, match=f"Cannot remove channels of '{layer}'"):
        remove_channels(model, images(), groups, {layer: [0]})


def test_a_network_without_channels_to_remove_says_what_holds_each() -> None:
    model = Net(lambda net, x: pooled(net.only(x)), only=conv(3, 4))
    with pytest.raises(ValueError, match="only: its channels are the network's output"):
        channel_groups(model, images())
    with pytest.raises(ValueError, match="It has no layer with channels"):
        channel_groups(nn.Sequential(nn.Flatten(), nn.Flatten()), images())


def test_a_network_that_fails_on_the_images_says_so() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 32, 32\) raises RuntimeError"):
        channel_groups(nn.Sequential(conv(4, 8), conv(8, 8)), images())


def test_a_network_whose_training_diverged_says_so() -> None:
    network = backbone("conv")
    with torch.no_grad():
        next(network.parameters()).fill_(torch.inf)
    with pytest.raises(ValueError, match=r"outputs are not finite.*diverged"):
        channel_groups(network, images())


def test_a_network_that_looks_at_values_is_traced_with_real_ones() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.a(x) if float(x.sum()) > -1e9 else x)),
        a=conv(3, 4),
        fc=nn.Linear(4, 2),
    )
    assert list(channel_groups(model, images())) == ["a"]


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


def test_a_channel_shuffle_ties_the_channels_that_it_mixes_and_no_others() -> None:
    model = Net(
        channels_shuffled,
        stem=conv(3, 8),
        **{f"into{unit}": nn.Conv2d(4, 6, 1) for unit in (1, 2)},
        **{f"depth{unit}": conv(6, 6, groups=6) for unit in (1, 2)},
        **{f"back{unit}": nn.Conv2d(6, 4, 1) for unit in (1, 2)},
        fc=nn.Linear(8, 2),
    )
    groups = channel_groups(model, images())
    assert groups["into1"].channels == groups["into2"].channels == 6
    smaller = remove_channels(model, images(), groups, {"into1": [0, 2], "into2": [5]})
    assert smaller.get_submodule("depth1").groups == 4
    assert smaller.get_submodule("back2").in_channels == 5


def test_what_is_concatenated_is_read_by_all_that_come_after() -> None:
    def dense_block(net: Net, x: Tensor) -> Tensor:
        for layer in list(net.children())[:-1]:
            x = torch.cat([x, layer(x)], dim=1)
        return net.fc(pooled(x))

    named = {f"conv{number}": conv(3 + 2 * number, 2) for number in range(24)}
    model = Net(dense_block, **named, fc=nn.Linear(3 + 2 * 24, 2))
    groups = channel_groups(model, images(size=8))
    assert list(groups) == list(named)
    assert set(groups["conv0"].readers) == {*(f"conv{n}" for n in range(1, 24)), "fc"}
    smaller = remove_channels(
        model, images(size=8), groups, {f"conv{n}": [n % 2] for n in range(24)}
    )
    assert smaller.get_submodule("fc").in_features == 3 + 24


@pytest.mark.parametrize("name", ["conv", "vgg16", "resnet18", "resnet56"])
def test_the_groups_are_those_of_torch_pruning(name: str) -> None:
    model = backbone(name).eval()
    if name == "resnet56":  # its padded shortcuts mean nothing to torch-pruning: blocks alone
        groups = channel_groups(model, images())
    else:
        groups = channel_groups(model, images(), scope="all")
    graph = torch_pruning.DependencyGraph().build_dependency(model, images(), verbose=False)
    names = {module: layer for layer, module in model.named_modules()}
    for group in groups.values():
        first = model.get_submodule(group.name)
        theirs = graph.get_pruning_group(first, torch_pruning.prune_conv_out_channels, [0])
        written, read = set(), set()
        for dependency, _ in theirs:
            layer = dependency.target.module
            if isinstance(layer, nn.Conv2d | nn.Linear):
                outputs = graph.is_out_channel_pruning_fn(dependency.handler)
                (written if outputs else read).add(names[layer])
        assert {writer.layer for writer in group.writers} == written
        assert set(group.readers) == read
