"""Magnitude pruning: which weights become zero, and stay so."""

import copy
import math

import pytest
import tiny
import torch
from torch import nn

from baselines import Magnitude
from baselines.weights.magnitude import small_weights
from testbed.cost import count_multiplications, sparsity


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach().clone()
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def test_weights_below_the_threshold_are_small() -> None:
    # Layer a: standard deviation 2, so that 1 goes at 0.6 of it; layer b, ten times larger: 20.
    a = torch.tensor([[1.0, -1.0, 3.0, -3.0]]) * math.sqrt(4 / 5)
    weights = {"a": a, "b": 10 * a}
    layer = small_weights(weights, 0.6, "layer")
    assert layer["a"].tolist() == layer["b"].tolist() == [[True, True, False, False]]
    # Of both together it is sqrt((4 + 400) / 2) = 14.2, of which 0.6 is 8.5.
    overall = small_weights(weights, 0.6, "global")
    assert overall["b"].tolist() == [[False, False, False, False]]
    assert overall["a"].tolist() == [[True, True, False, False]]  # its largest weights stay


def test_the_deviation_is_about_the_mean_and_the_bound_is_strict() -> None:
    weights = {"a": torch.tensor([1.0, 3.0, 5.0, 7.0]) - 4 + 2}  # -1, 1, 3, 5: deviation sqrt(5)
    assert small_weights(weights, 1 / math.sqrt(5), "layer")["a"].sum() == 0
    assert small_weights(weights, 1.01 / math.sqrt(5), "layer")["a"].sum() == 2


@pytest.mark.parametrize("threshold", [0.25, 1.0, 2.0])
def test_of_normal_weights_the_share_is_the_error_function(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(400, 400, generator=generator)}
    share = small_weights(weights, threshold, "global")["a"].double().mean().item()
    assert share == pytest.approx(math.erf(threshold / math.sqrt(2)), abs=0.005)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_layer_keeps_a_weight_at_any_threshold(scope: str) -> None:
    method = Magnitude(threshold=50.0, scope=scope)
    network = method.prune(tiny.network(), tiny.splits(), tiny.run(1))
    assert [int((w != 0).sum()) for w in weights_of(network).values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_without_retraining_only_the_small_weights_change(scope: str) -> None:
    model = tiny.network()
    network = Magnitude(threshold=0.8, scope=scope).prune(model, tiny.splits(), tiny.run(0))
    before = weights_of(model)
    small = small_weights(before, 0.8, scope)
    for name, weight in weights_of(network).items():
        assert torch.equal(weight, before[name].masked_fill(small[name], 0))
    others = {key for key in model.state_dict() if key.removesuffix(".weight") not in before}
    assert all(torch.equal(model.state_dict()[k], network.state_dict()[k]) for k in others)


def test_a_masked_update_holds_zeros_and_moves_everything_else() -> None:
    model = tiny.network()
    network = Magnitude(threshold=0.8).prune(model, tiny.splits(), tiny.run(3))
    before = weights_of(model)
    small = small_weights(before, 0.8, "global")
    for name, weight in weights_of(network).items():
        assert torch.equal(weight == 0, small[name])
        assert (weight != before[name]).any()


@pytest.mark.parametrize("masked", [True, False])
def test_each_round_reports_the_sparsity_before_and_after_retraining(masked: bool) -> None:
    reports: list = []
    method = Magnitude(threshold=0.7, rounds=3, masked_update=masked)
    network = method.prune(tiny.network(), tiny.splits(), tiny.run(3, reports=reports))
    rounds = [r for r in reports if "round" in r]
    assert [r["round"] for r in rounds] == [1, 2, 3]
    before = [r["sparsity_before_finetuning"] for r in rounds]
    after = [r["sparsity"] for r in rounds]
    assert 0.3 < before[0] < 0.9
    if masked:
        assert before == after == sorted(after)
        assert sparsity(network) == after[-1]
    else:
        assert max(after) < 0.05  # weights grow again, ...
        assert 0.3 < sparsity(network) < 0.9  # ... and go in the end


def test_it_saves_no_multiplication_of_a_dense_machine() -> None:
    model = tiny.network()
    network = Magnitude(threshold=1.5).prune(model, tiny.splits(), tiny.run(1))
    example = torch.randn(2, 2, 8, 8)
    dense, cost = (count_multiplications(n, example) for n in (model, network))
    assert cost.multiplications == dense.multiplications
    assert cost.nonzero_multiplications < 0.5 * dense.nonzero_multiplications


def test_nothing_of_the_masking_is_left_on_the_network() -> None:
    network = Magnitude().prune(tiny.network(), tiny.splits(), tiny.run(1))
    assert not any(p._backward_hooks for p in network.parameters())
    assert network.state_dict().keys() == tiny.network().state_dict().keys()
    copy.deepcopy(network)


def test_frozen_weights_are_pruned_and_stay_frozen() -> None:
    model = tiny.network()
    model.conv1.weight.requires_grad_(False)
    network = Magnitude(threshold=1.0).prune(model, tiny.splits(), tiny.run(1))
    assert not network.conv1.weight.requires_grad
    assert (network.conv1.weight == 0).any()


def test_a_network_without_weights_and_too_many_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="no conv and no linear layer"):
        Magnitude().prune(nn.Sequential(nn.Flatten()), tiny.splits(), tiny.run(1))
    with pytest.raises(ValueError, match="at most 2 rounds"):
        Magnitude(rounds=3).prune(tiny.network(), tiny.splits(), tiny.run(2))
