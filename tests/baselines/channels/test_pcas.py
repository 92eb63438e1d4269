"""PCAS: attention that is trained alone, averaged, folded and dropped."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from small_networks import Net, conv, lived_in
from torch import Tensor, nn

import baselines.channels.pcas
from baselines import PCAS
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import example_images
from baselines.channels.pcas import Attended, fold_attention, least_important
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications

CPU = torch.device("cpu")


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def of_kind(kind: str) -> nn.Module:
    if kind == "resnet":  # whose stream several layers read
        torch.manual_seed(0)
        return lived_in(build_backbone("resnet20", (2, 8, 8), 3, width=0.25)).eval()
    return tiny.trained(kind).eval()


def attended(model: nn.Module, kind: str = "softmax") -> Attended:
    groups = channel_groups(model, images(), scope="all")
    return Attended(model, groups, 2, kind).eval()  # type: ignore[arg-type]


def constant(net: Attended) -> dict[str, Tensor]:
    """Makes each group's attention a constant of its own; returns them."""
    generator = torch.Generator().manual_seed(3)
    for module in net.attention:
        module.excite.bias.data = torch.randn(module.excite.out_features, generator=generator)
    with torch.no_grad(), net.averaging() as means:
        net(images())
    return means


@pytest.mark.parametrize("kind", ["conv", "residual", "resnet"])
def test_attention_begins_as_none(kind: str) -> None:
    model = of_kind(kind)
    with torch.no_grad():
        torch.testing.assert_close(attended(model)(images()), model(images()))


@pytest.mark.parametrize("attention", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["conv", "residual", "resnet"])
def test_folding_a_constant_attention_changes_no_output(kind: str, attention: str) -> None:
    model = of_kind(kind)
    net = attended(model, attention)
    means = constant(net)
    folded = copy.deepcopy(model)
    fold_attention(folded, channel_groups(model, images(), scope="all"), means)
    with torch.no_grad():
        expected = net(images())
        assert not torch.allclose(model(images()), expected, atol=1e-3)
        torch.testing.assert_close(folded(images()), expected, rtol=1e-4, atol=1e-4)


def test_softmax_attention_of_every_group_sums_to_its_channels() -> None:
    net = attended(of_kind("resnet"))
    for module in net.attention:
        module.excite.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), net.averaging() as means:
        net(images())
    for values in means.values():
        assert values.sum().item() == pytest.approx(len(values))
        assert values.std() > 0.01


def test_a_channel_that_no_weight_reads_gets_attention_for_nothing() -> None:
    model = tiny.trained()
    model.conv2.weight.data[:, 2] = 0
    net = attended(model)
    means = constant(net)
    assert means["conv1"][2] != 1
    with torch.no_grad():
        before = net(images())
        hooked = net.attention[0].register_forward_hook(
            lambda _, given, weights: weights.index_fill(1, torch.tensor([2]), 7.0)
        )
        torch.testing.assert_close(net(images()), before)
        hooked.remove()


def test_only_the_attention_learns() -> None:
    net = attended(tiny.trained())
    net.train()
    assert not net.network.training and not any(m.training for m in net.network.modules())
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learning and all(name.startswith("attention.") for name in learning)


def importances(images: int, seed: int = 0, epochs: int = 3) -> dict[str, Tensor]:
    method = PCAS(images=images, attention_epochs=epochs, attention_rate=1.0, scope="all")
    model, data = tiny.network(), tiny.splits()  # not trained: there is something to attend to
    groups = method.groups(model, example_images(data, CPU))
    return method._importances(model, groups, data, tiny.run(0, seed=seed))


def test_some_images_rank_the_channels_as_all_of_them_do() -> None:
    few, all_of_them = importances(24), importances(96)
    for name, values in all_of_them.items():
        ranks = torch.stack([values.argsort().argsort(), few[name].argsort().argsort()]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.9


def test_attention_goes_to_the_channel_that_tells_the_classes_apart() -> None:
    """Two channels of noise and one of the signal, in a network that cannot scale them itself."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.mix(net.first(x).relu()).mean((2, 3)))

    model = Net(forward, first=conv(2, 3), mix=nn.Conv2d(3, 3, 1), head=nn.Linear(3, 3))
    data = tiny.splits()
    with torch.no_grad():
        model.first.weight[:2] *= 0.02
        model.first.bias[:2] = 1.0
    method = PCAS(attention_epochs=20, attention_rate=1.0)
    groups = method.groups(model, example_images(data, CPU))
    found = method._importances(model, groups, data, tiny.run(0))["first"]
    assert found.argmax() == 2 and found[2] > 1.1


def tensors(values: Mapping[str, list[float]]) -> dict[str, Tensor]:
    return {name: torch.tensor(each) for name, each in values.items()}


def test_the_least_important_channels_of_all_layers_go_first() -> None:
    given = tensors({"a": [1.2, 0.5, 1.3], "b": [0.9, 0.7, 1.1, 1.3]})
    assert least_important(given, 3) == {"a": [1], "b": [0, 1]}


def test_the_most_important_channel_of_each_layer_stays() -> None:
    given = tensors({"a": [0.1, 0.2], "b": [1.0, 1.0, 1.0]})
    assert least_important(given, 2) == {"a": [0], "b": [1]}
    assert least_important(given, 99) == {"a": [0], "b": [1, 2]}


def test_multiples_stay_where_they_are_asked_for() -> None:
    given = tensors({"a": [0.1, 0.2, 0.3, 0.4, 0.5], "b": [0.6, 0.7, 0.8]})
    assert least_important(given, 2, round_to=4) == {"a": [0], "b": []}
    assert least_important(given, 3, round_to=2) == {"a": [0, 1, 2], "b": []}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_share_of_multiplications_is_met_from_below(
    share: float,
) -> None:
    model = of_kind("resnet")
    method = PCAS(keep_multiplications=share, attention_epochs=1, attention_rate=1.0)
    reports: list = []
    pruned = method.prune(model, tiny.splits(), tiny.run(0, reports=reports))
    dense, left = (
        count_multiplications(each, images(1)).multiplications for each in (model, pruned)
    )
    assert 0.95 * share <= left / dense <= share
    assert reports[0] == {"statistics_epochs": 2.0}


def test_a_ratio_is_of_the_channels_of_the_whole_network() -> None:
    pruned = PCAS(keep_ratio=0.3, attention_epochs=1).prune(
        tiny.trained(), tiny.splits(), tiny.run(0)
    )
    left = (
        pruned.get_parameter("conv1.weight").shape[0]
        + pruned.get_parameter("conv2.weight").shape[0]
    )
    assert left == 14 - round(0.7 * 14)


def test_attention_that_was_learnt_before_a_stop_is_not_learnt_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run(1)
    run.folder = tmp_path
    whole = PCAS().prune(tiny.trained(), tiny.splits(), run)
    monkeypatch.setattr(baselines.channels.pcas, "train", None)
    again = tiny.run(1)
    again.folder = tmp_path
    found = PCAS().prune(tiny.trained(), tiny.splits(), again)
    assert again.reported == run.reported
    assert torch.equal(found.conv2.weight, whole.conv2.weight)


def test_a_network_whose_readers_are_no_layers_is_refused_before_any_work() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = conv(2, 4)
            self.mix = nn.Parameter(torch.randn(3, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            maps: Tensor = torch.nn.functional.conv2d(self.first(x).relu(), self.mix)
            return maps.mean(dim=(2, 3))

    with pytest.raises(ValueError, match=r"can get attention.*no plain conv or linear.*l1_filter"):
        PCAS().check_network(Own(), tiny.splits())
