"""Random channels, and weights drawn anew: both are a seed's alone."""

import copy

import pytest
import tiny
import torch
from torch import nn

from baselines.channels.random_channels import RandomChannels
from baselines.channels.vanilla import Vanilla
from testbed.method import Run
from testbed.new_weights import draw_anew


def test_random_channels_draws_anew_for_every_ratio() -> None:
    model = tiny.network("conv")

    def kept(ratio: float, layer: str) -> set[float]:
        """What stays of a layer, told apart by the filters' first weights, before fine-tuning."""
        method = RandomChannels(keep_ratio=ratio)
        network = method.prune(model, tiny.splits(), tiny.run(0))
        return set(network.get_parameter(f"{layer}.weight")[:, 0, 0, 0].tolist())

    nested = [kept(low, "conv1") <= kept(low + 0.25, "conv1") for low in (0.25, 0.4, 0.5, 0.6)]
    assert not all(nested)


def test_random_channels_differ_from_seed_to_seed() -> None:
    method = RandomChannels()
    first, second = (
        method.prune(tiny.network(), tiny.splits(), tiny.run(0, seed=seed)) for seed in (0, 1)
    )
    assert not torch.equal(first.conv2.weight, second.conv2.weight)
    rows = {tuple(row.flatten().tolist()) for row in tiny.network().conv1.weight}
    assert all(tuple(row.flatten().tolist()) in rows for row in first.conv1.weight)


def test_vanilla_keeps_no_trained_weight_and_no_statistics() -> None:
    model = tiny.network()
    for norm in (model.norm1, model.norm2):
        norm.running_mean.fill_(3.0)
    thin = copy.deepcopy(model)
    draw_anew(thin, seed=1)
    for key, value in model.state_dict().items():
        if key.endswith(("conv1.weight", "hidden.weight", "classifier.bias", "running_mean")):
            assert not torch.isclose(thin.state_dict()[key], value).all(), key
    again = copy.deepcopy(model)
    state_before = torch.random.get_rng_state()
    draw_anew(again, seed=1)
    assert torch.equal(state_before, torch.random.get_rng_state())
    assert torch.equal(again.conv1.weight, thin.conv1.weight)


def test_vanilla_starts_from_weights_that_only_the_seed_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, model = Vanilla(keep_ratio=1), tiny.network()
    monkeypatch.setattr(Run, "train_from_scratch", lambda *_: None)
    networks = []
    for seed in (0, 1):
        networks.append(method.prune(model, tiny.splits(), tiny.run(0, seed=seed)))
        draw_anew(drawn := copy.deepcopy(model), seed)
        assert torch.equal(networks[-1].conv2.weight, drawn.conv2.weight)
    assert not torch.isclose(networks[0].conv2.weight, networks[1].conv2.weight).any()


def test_vanilla_shuffles_parameters_of_modules_that_cannot_draw_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.arange(24.0).reshape(2, 12))

    networks = [nn.Sequential(nn.MultiheadAttention(4, 2), Scaled()) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        draw_anew(network, seed)
    drawn = [network[1].scale for network in networks]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], torch.arange(24.0).reshape(2, 12))
    assert sorted(drawn[0].flatten().tolist()) == list(range(24))
    assert torch.equal(networks[0][0].in_proj_weight, networks[1][0].in_proj_weight)
