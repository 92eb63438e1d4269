"""Least-squares refit of the layers that read channels."""

import copy

import pytest
import tiny
import torch
from small_networks import Net, conv
from torch import Tensor, nn

from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import example_images
from baselines.channels.contributions import Sampler
from baselines.channels.refit import Refit, refitted

CPU = torch.device("cpu")
ALL = 10**6  # positions


def refit_of(model: nn.Module, positions: int = ALL, diverged: bool = False) -> Refit:
    data = tiny.splits()
    groups = channel_groups(tiny.network() if diverged else model, example_images(data, CPU))
    sampler = Sampler(data, CPU, "float32", torch.contiguous_format, len(data.train), positions)
    return Refit(model, groups, sampler, data.train, torch.Generator().manual_seed(0))


def inputs_of(model: nn.Module, layer: str) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    data = tiny.splits()
    with torch.no_grad():
        model.eval()(data.normalised(data.train)[:])
    hook.remove()
    return seen[0]


def error(model: nn.Module, changed: nn.Module, layer: str, lost: list[int]) -> float:
    """How far a layer's outputs are off, as a share, where its lost inputs are zero."""
    x = inputs_of(model, layer)
    kept = x.index_fill(1, torch.tensor(lost), 0)
    with torch.no_grad():
        before, after = model.get_submodule(layer)(x), changed.get_submodule(layer)(kept)
    return float((before - after).square().sum() / before.square().sum())


def test_the_refit_is_that_of_torchs_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    x[:, 6:] += x[:, :6]
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    lost = torch.arange(12) >= 8
    found = refitted(weight, x.T @ x, lost)
    assert not found[:, lost].any()
    expected = torch.linalg.lstsq(x[:, ~lost], x @ weight.T).solution.T
    torch.testing.assert_close(found[:, ~lost], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_that_are_sums_of_others_are_made_up_for_wholly(stride: int) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.two(net.one(x)).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = Net(forward, one=conv(2, 5), two=conv(5, 4, stride=stride), head=nn.Linear(4, 3))
    with torch.no_grad():
        for tensor in (model.one.weight, model.one.bias):
            tensor[1] = 0.5 * tensor[0] - 2 * tensor[3]
            tensor[4] = tensor[2] + tensor[3]
    changed = copy.deepcopy(model)
    refit_of(model)(changed, {"one": [1, 4]})
    assert error(model, model, "two", [1, 4]) > 0.1
    assert error(model, changed, "two", [1, 4]) < 1e-8
    assert not changed.two.weight[:, [1, 4]].any()
    assert torch.equal(changed.one.weight, model.one.weight)


@pytest.mark.parametrize("layer, group", [("conv2", "conv1"), ("hidden", "conv2")])
def test_a_layers_error_shrinks_on_a_trained_network(layer: str, group: str) -> None:
    model = tiny.trained()
    changed = copy.deepcopy(model)
    refit_of(model)(changed, {group: [0, 2, 5]})
    lost = [0, 2, 5] if layer == "conv2" else [16 * c + i for c in (0, 2, 5) for i in range(16)]
    assert error(model, changed, layer, lost) < 0.7 * error(model, model, layer, lost)


def test_some_positions_do_nearly_as_well_as_all_of_them() -> None:
    model = tiny.trained()
    errors = []
    for positions in (20, ALL):
        changed = copy.deepcopy(model)
        refit_of(model, positions)(changed, {"conv1": [0, 2, 5]})
        errors.append(error(model, changed, "conv2", [0, 2, 5]))
    assert errors[1] <= errors[0] < 1.1 * errors[1]


def test_a_layer_that_loses_nothing_stays_as_it_is() -> None:
    model = tiny.trained()
    changed = copy.deepcopy(model)
    refit_of(model)(changed, {"conv1": []})
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), changed.parameters(), strict=True)
    )


def test_a_network_that_has_diverged_is_refused() -> None:
    model = tiny.network()
    model.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"What layer 'conv2' reads is not finite"):
        refit_of(model, diverged=True)


def test_a_layer_that_reads_very_many_values_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.trained()
    n_inputs = model.get_submodule("conv2").weight[0].numel()  # type: ignore[index, operator]
    for most, is_refitted in ((n_inputs, True), (n_inputs - 1, False)):
        monkeypatch.setattr("baselines.channels.refit.MOST_INPUTS", most)
        changed = copy.deepcopy(model)
        refit_of(model)(changed, {"conv1": [0, 2]})
        before, after = (each.get_parameter("conv2.weight") for each in (model, changed))
        assert torch.equal(before, after) is not is_refitted
