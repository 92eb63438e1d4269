"""Feature maps: those that hold nothing are not read."""

import pytest
import tiny
import torch
from pydantic import ValidationError
from small_networks import Net, conv, lived_in
from torch import Tensor, nn

from baselines import FeatureMaps
from baselines.runtime.feature_maps import layers_that_read_maps, run_alike
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications


def images(n: int = 6, channels: int = 2, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, channels, size, size, generator=generator)


def pruned(model: nn.Module, epsilon: float = 0.0, **options: object) -> nn.Module:
    method = FeatureMaps(epsilon=epsilon, **options)  # type: ignore[arg-type]
    return method.prune(model, tiny.splits(), tiny.run(0))


def with_dead_channels() -> nn.Module:
    """A chain of convs, two channels of the first of which are never above zero."""
    model = tiny.trained()
    model.norm1.weight.data[[1, 4]] = 0
    model.norm1.bias.data[[1, 4]] = -1
    return model


@pytest.mark.parametrize("kind", ["conv", "residual", "resnet20", "m_cifarnet"])
def test_at_epsilon_zero_every_output_stays(kind: str) -> None:
    if kind in ("conv", "residual"):
        model = tiny.trained(kind).eval()
    else:
        torch.manual_seed(0)
        model = lived_in(build_backbone(kind, (2, 8, 8), 3, width=0.25)).eval()
    network = pruned(model)
    for x in (images(), images()[:1], torch.zeros(3, 2, 8, 8)):
        with torch.no_grad():
            torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_dead_channel_saves_just_what_reads_it() -> None:
    found = count_multiplications(pruned(with_dead_channels()), images())
    a_channel = 9 * 8 * 8 * 8  # 3x3, 8 outputs, 8 x 8
    assert found.per_layer["conv1"].tolist() == [9 * 2 * 6 * 64] * 6
    assert found.per_layer["conv2"].tolist() == [(6 - 2) * a_channel] * 6


def test_an_empty_flattened_map_saves_its_columns_of_the_linear_layer() -> None:
    model = tiny.trained()
    model.norm2.weight.data[3] = 0
    model.norm2.bias.data[3] = -1
    before = count_multiplications(pruned(tiny.trained()), images()).per_layer["hidden"]
    after = count_multiplications(pruned(model), images()).per_layer["hidden"]
    assert (before - after).tolist() == [16 * 10] * 6


def test_each_image_skips_its_own_maps_alone_and_in_a_batch() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.read(net.write(x).relu()).mean((2, 3)))

    model = Net(forward, write=nn.Conv2d(2, 2, 1), read=conv(2, 5), head=nn.Linear(5, 3))
    with torch.no_grad():
        model.write.weight.copy_(torch.eye(2)[:, :, None, None])
        model.write.bias.zero_()
    x = images(4).abs()
    x[0, 0] = 0
    x[1, 1] = 0
    x[2] = 0
    network = pruned(model)
    a_map = 9 * 5 * 64
    rest = 2 * 2 * 64 + 15
    found = count_multiplications(network, x)
    assert found.per_image.tolist() == [rest + a_map, rest + a_map, rest, rest + 2 * a_map]
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))
        assert network(x).shape == (4, 3)


def test_savings_rise_with_epsilon_and_everything_is_empty_in_the_end() -> None:
    model = tiny.trained()
    costs = [
        count_multiplications(pruned(model, epsilon), images()).multiplications
        for epsilon in (0.0, 1.0, 2.0, 100.0)
    ]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[2]
    first, last = 9 * 2 * 6 * 64, 10 * 3  # the conv that reads images, the classifier
    assert costs[-1] == first + last


def test_epsilon_is_in_deviations_of_what_a_layer_reads() -> None:
    model, data = tiny.trained().eval(), tiny.splits()
    network = pruned(model, 0.7)
    with torch.no_grad():
        read = model[:4](data.normalised(data.train)[:])
    torch.testing.assert_close(network.conv2.bound, 0.7 * read.std(correction=0), rtol=1e-4, atol=0)
    assert pruned(model, 0.7, unit="absolute").conv2.bound == torch.tensor(0.7)
    assert not network.conv1.bound, "it reads images"


def test_a_layer_that_reads_larger_values_gets_a_larger_bound() -> None:
    model = tiny.trained()
    before = pruned(model, 1.0).conv2.bound
    model.norm1.weight.data *= 64
    model.norm1.bias.data *= 64
    torch.testing.assert_close(pruned(model, 1.0).conv2.bound, 64 * before)


def test_sums_of_residual_blocks_are_tested_after_the_addition() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = (x + net.inner(x)).relu()
        return net.head(net.read(x).mean((2, 3)))

    model = Net(forward, stem=conv(2, 3), inner=conv(3, 3), read=conv(3, 4), head=nn.Linear(4, 3))
    with torch.no_grad():
        model.inner.weight.zero_()
        model.inner.bias.zero_()
        for channel in range(3):
            model.inner.weight[channel, channel, 1, 1] = -1  # so that sums are zero, parts are not
    found = count_multiplications(pruned(model), images(2))
    assert "read" not in found.per_layer and found.per_layer["inner"].tolist() == [5184, 5184]


def test_which_layers_read_maps_is_told_from_the_network() -> None:
    assert layers_that_read_maps(tiny.trained(), images(1)) == {"conv2": 1, "hidden": 16}
    assert layers_that_read_maps(tiny.trained("residual"), images(1)) == {"conv1": 1, "conv2": 1}


def test_a_network_without_such_a_layer_is_refused_before_any_work() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)
    )
    with pytest.raises(ValueError, match="No layer of this network reads feature maps"):
        FeatureMaps().check_network(model, tiny.splits())


def test_nothing_but_the_budget_is_trained_and_comparisons_are_reported() -> None:
    reports: list = []
    FeatureMaps(epsilon=0.5, images=48).prune(
        tiny.trained(), tiny.splits(), tiny.run(1, reports=reports)
    )
    assert [r for r in reports if "statistics_epochs" in r] == [{"statistics_epochs": 0.5}] * 2
    assert reports[-1] == {"comparisons": 6 * 64 + 8 * 16}
    assert len([r for r in reports if "epoch" in r]) == 1


def test_images_alike_run_together_and_come_back_in_their_order() -> None:
    x = torch.arange(5.0)[:, None]
    full = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1]], dtype=torch.bool)
    batches = []

    def run(part: Tensor, maps: Tensor) -> Tensor:
        batches.append((part.flatten().tolist(), maps.tolist()))
        return 10 * part

    assert run_alike(x, full, run).flatten().tolist() == [0, 10, 20, 30, 40]
    assert sorted(batches) == [([0, 2], [0]), ([1, 4], [1]), ([3], [0, 1])]


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_an_epsilon_that_is_no_distance_is_refused(epsilon: float) -> None:
    with pytest.raises(ValidationError):
        FeatureMaps(epsilon=epsilon)
