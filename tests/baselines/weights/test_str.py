"""STR: thresholds that are learnt, and the sparsity that is asked for."""

import copy
import math

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from baselines import STR
from baselines.weights.layer_weights import bake, moved, moves, originals, weight_layers
from baselines.weights.str import SoftThreshold, decay_for, factor_for, first_s, thresholds_of
from testbed.cost import count_multiplications, sparsity, weights_by_layer
from testbed.training import Training, train


def with_thresholds(s: float, kind: str = "conv") -> nn.Module:
    network = tiny.network(kind)
    for layer in weight_layers(network).values():
        parametrize.register_parametrization(layer, "weight", SoftThreshold(s))
    return network


def test_a_threshold_of_nothing_leaves_the_weights() -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SoftThreshold(-50.0)(weight), weight)


def test_weights_are_shrunk_by_the_threshold_and_those_below_it_are_zero() -> None:
    threshold = SoftThreshold(math.log(0.25 / 0.75))  # whose sigmoid is 0.25
    shrunk = threshold(torch.tensor([-1.0, -0.25, -0.1, 0.0, 0.2, 0.35]))
    torch.testing.assert_close(shrunk, torch.tensor([-0.75, 0.0, 0.0, 0.0, 0.0, 0.1]))


def test_gradients_agree_with_differences() -> None:
    threshold = SoftThreshold(-1.0).double()
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    s = threshold.s.detach().clone().requires_grad_()

    def shrunk(weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(threshold, {"s": s}, (weight,))

    assert torch.autograd.gradcheck(shrunk, (weight.requires_grad_(), s))


def test_the_largest_weight_of_a_layer_stays_at_any_threshold() -> None:
    weight = torch.tensor([0.01, -0.03, 0.02])
    assert (SoftThreshold(5.0)(weight) != 0).tolist() == [False, True, False]


@pytest.mark.parametrize("n_zeros", [1, 7, 100, 195])
def test_the_factor_of_all_thresholds_gives_so_many_zeros(n_zeros: int) -> None:
    generator = torch.Generator().manual_seed(n_zeros)
    weights = {name: 0.1 * torch.randn(66, generator=generator) for name in "abc"}
    thresholds = {"a": torch.tensor(-4.0), "b": torch.tensor(-6.0), "c": torch.tensor(-5.0)}
    factor = factor_for(weights, thresholds, n_zeros)
    zeros = sum(
        int((SoftThreshold(factor * thresholds[name].item())(weight) == 0).sum())
        for name, weight in weights.items()
    )
    assert zeros == n_zeros


def test_without_a_gradient_from_the_data_thresholds_follow_the_exponential() -> None:
    network, data = with_thresholds(-50.0), tiny.splits()  # where the sigmoid has no slope
    settings = Training(epochs=20, batch_size=8, learning_rate=0.05, precision="float32")
    steps, layers = moves(settings, len(data.train)), weight_layers(tiny.network())
    decay = decay_for(0.8, moved(steps, 0.0, 1.0))
    thresholds = thresholds_of({name: network.get_submodule(name) for name in layers})
    train(
        network,
        data,
        settings,
        seed=0,
        device=torch.device("cpu"),
        penalty=lambda *_: decay / 2 * torch.stack([s**2 for s in thresholds.values()]).sum(),
    )
    for s in thresholds.values():
        assert s.item() == pytest.approx(-40, rel=0.004)


def test_thresholds_start_where_the_weights_decay_takes_them_to_be_felt() -> None:
    settings = Training(epochs=40, batch_size=100, learning_rate=0.1, weight_decay=1e-3)
    steps = moves(settings, 50_000)
    assert len(steps) == 20_000
    start = first_s(1e-3, steps)
    # Half of the rates' sum is theirs to 0.7: the rates rise for a quarter, fall for the rest.
    rates = 0.1 * (0.125 + 0.45 - (0.45**2) / 1.5) * 20_000
    assert start == pytest.approx(-6 * math.exp(1e-3 * rates / 0.1), rel=1e-3)


def test_what_is_baked_gives_what_was_trained() -> None:
    network = with_thresholds(-2.5)
    images = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network.eval()(images)
    layers = {name: network.get_submodule(name) for name in weight_layers(tiny.network())}
    shifted = [weight.detach().clone() for weight in originals(layers).values()]
    bake(layers)
    assert torch.equal(network(images), before)
    assert network.state_dict().keys() == tiny.network().state_dict().keys()
    now = weights_by_layer(network).values()
    assert any(not torch.equal(a[a != 0], b[a != 0]) for a, b in zip(now, shifted, strict=True))


@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_the_sparsity_is_met_and_stays(share: float) -> None:
    reports: list = []
    model = tiny.trained()
    network = STR(sparsity=share).prune(model, tiny.splits(), tiny.run(4, reports=reports))
    total = sum(weight.numel() for weight in weights_by_layer(network).values())
    assert sparsity(network) == pytest.approx(share, abs=0.51 / total)
    assert all((weight != 0).any() for weight in weights_by_layer(network).values())
    (learned,) = (r for r in reports if "learned_sparsity" in r)
    assert learned["sparsity"] == sparsity(network)
    image = torch.zeros(1, 2, 8, 8)
    costs = [count_multiplications(each, image) for each in (model, network)]
    assert costs[0].multiplications == costs[1].multiplications


def test_in_a_longer_training_the_decay_alone_comes_near_the_sparsity() -> None:
    reports: list = []
    run = tiny.run(24, reports=reports)
    run.fine_tuning = run.fine_tuning.model_copy(update={"batch_size": 8})
    STR(sparsity=0.7).prune(tiny.trained(), tiny.splits(), run)
    (learned,) = (r["learned_sparsity"] for r in reports if "learned_sparsity" in r)
    assert learned == pytest.approx(0.7, abs=0.05)


def test_layers_learn_thresholds_of_their_own() -> None:
    network, data = with_thresholds(-3.0), tiny.splits()
    thresholds = thresholds_of({n: network.get_submodule(n) for n in weight_layers(tiny.network())})
    train(network, data, tiny.LEARNING, seed=0, device=torch.device("cpu"))
    assert len({round(s.item(), 3) for s in thresholds.values()}) == len(thresholds)


def test_too_short_a_training_is_refused_with_the_sweep_file_too() -> None:
    with pytest.raises(ValueError, match=r"expected fine_tuning.epochs of 2 or more, got 1"):
        STR().prune(tiny.trained(), tiny.splits(), tiny.run(1))
    short = {"fine_tuning": Training(epochs=1)}
    with pytest.raises(ValidationError, match="2 or more, got 1"):
        STR.model_validate({}, context=short)


def test_networks_whose_weights_cannot_be_taken_hold_of_are_refused() -> None:
    data, shared, computed = tiny.splits(), tiny.network(), tiny.network()
    computed.conv1 = parametrizations.weight_norm(computed.conv1)
    shared.second = copy.deepcopy(shared.classifier)
    shared.second.weight = shared.classifier.weight
    cases = [
        (nn.Sequential(nn.Flatten()), "no conv and no linear layer"),
        (computed, r"layer 'conv1', but it is computed"),
        (shared, r"'classifier' and 'second' share one weight"),
    ]
    for network, said in cases:
        with pytest.raises(ValueError, match=said):
            STR().check_network(network, data)
    with pytest.raises(ValueError, match="cannot be reached: every layer keeps a weight"):
        STR(sparsity=0.99999).check_network(tiny.network(), data)
