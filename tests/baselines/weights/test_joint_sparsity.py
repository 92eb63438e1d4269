"""Joint sparsity: zeros in the spatial and in the Winograd domain."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from baselines import JointSparsity
from testbed.cost import count_multiplications, sparsity, weights_by_layer
from testbed.method import load_pruned
from testbed.network_file import save_network
from testbed.special_costs import special_costs
from testbed.winograd import WinogradConv2d, transformed


def squares(weight: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    return JointSparsity(sparsity=share)._small_squares({"a": weight})


def test_only_the_squares_of_the_smallest_count() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, -4.0]])
    assert squares(weight).item() == (1 + 4) / 4
    assert squares(weight, 0.25).item() == 1 / 4


def test_the_gradient_in_the_winograd_domain_is_the_transposed_transform() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(squares(transformed(weight)), weight)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]).double()
    u = transformed(weight).detach()
    threshold = u.abs().flatten().kthvalue(u.numel() // 2).values
    by_hand = 2 / u.numel() * (g.T @ torch.where(u.abs() <= threshold, u, 0) @ g)
    torch.testing.assert_close(gradient, by_hand)


def test_a_log_pressure_comes_to_rest_where_the_penalty_says() -> None:
    z, alpha, r = torch.zeros(1, requires_grad=True), 0.3, 0.01
    optimizer = torch.optim.SGD([z], lr=0.5)
    for _ in range(500):
        optimizer.zero_grad()
        (z.exp() * r - alpha * z).sum().backward()
        optimizer.step()
    assert z.item() == pytest.approx(math.log(alpha / r), abs=1e-3)


def zero_share(weights: list[torch.Tensor]) -> float:
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_in_the_winograd_domain_convs_run_there_and_the_sparsity_is_met(kind: str) -> None:
    model, reports = tiny.trained(kind), []
    network = JointSparsity().prune(model, tiny.splits(), tiny.run(3, reports=reports))
    layers = [m.weight for m in network.modules() if isinstance(m, WinogradConv2d)]
    assert len(layers) == (2 if kind == "conv" else 3)
    assert zero_share(layers) == pytest.approx(0.7, abs=0.01)
    assert zero_share(list(weights_by_layer(network).values())) == pytest.approx(0.7, abs=0.05)
    (said,) = (r["winograd_sparsity"] for r in reports if "winograd_sparsity" in r)
    assert said == pytest.approx(zero_share(layers))
    x = torch.randn(2, 2, 8, 8)
    before, after = (count_multiplications(each, x) for each in (model, network))
    assert after.multiplications == before.multiplications, "never on that axis"
    saved = [
        special_costs(each, cost, x)["winograd_multiplications"]
        for each, cost in ((model, before), (network, after))
    ]
    assert saved[1] < 0.5 * saved[0] < 0.5 * before.multiplications


def test_in_the_spatial_domain_the_network_keeps_its_layers() -> None:
    method = JointSparsity(domain="spatial", sparsity=0.6)
    network = method.prune(tiny.trained(), tiny.splits(), tiny.run(3))
    assert network.state_dict().keys() == tiny.network().state_dict().keys()
    assert sparsity(network) == pytest.approx(0.6, abs=0.01)
    assert all((weight != 0).any() for weight in weights_by_layer(network).values())


def test_small_weights_have_shrunk_before_they_are_zeroed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(JointSparsity, "_zero_small", lambda *_: None)
    small = []
    for pressure in (1e-9, 2.0):
        method = JointSparsity(domain="spatial", sparsity=0.6, pressure=pressure)
        network = method.prune(tiny.trained(), tiny.splits(), tiny.run(12))
        weights = weights_by_layer(network)
        other = {n: transformed(w) for n, w in weights.items() if w.ndim == 4}
        small.append([method._small_squares(each).item() for each in (weights, other)])
    (free_spatial, free_winograd), (spatial, winograd) = small
    assert spatial < 0.5 * free_spatial and winograd < 0.5 * free_winograd


def test_both_domains_come_from_the_same_training() -> None:
    networks = [
        JointSparsity(domain=domain, sparsity=0.5).prune(tiny.trained(), tiny.splits(), tiny.run(2))
        for domain in ("winograd", "spatial")
    ]
    spatial = networks[1].get_submodule("conv1").weight
    kept = spatial != 0
    assert kept.any() and isinstance(networks[0].get_submodule("conv1"), WinogradConv2d)
    assert torch.equal(networks[0].norm1.running_mean, networks[1].norm1.running_mean)


def test_the_file_brings_the_convs_back(tmp_path: Path) -> None:
    method, path = JointSparsity(sparsity=0.5), tmp_path / "network.safetensors"
    network = method.prune(tiny.trained(), tiny.splits(), tiny.run(1))
    save_network(network, path)
    loaded, x = load_pruned(path, method, tiny.network()).eval(), torch.randn(2, 2, 8, 8)
    assert isinstance(loaded.get_submodule("conv2"), WinogradConv2d)
    assert torch.equal(loaded(x), network.eval()(x))


def test_a_network_without_a_3x3_conv_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match="needs a 3x3 conv of stride 1"):
        JointSparsity().check_network(network, tiny.splits())
    with pytest.raises(ValueError, match="1 or more, got 0"):
        JointSparsity().prune(tiny.trained(), tiny.splits(), tiny.run(0))
