"""BitPruning: lengths that are learnt, and numbers that have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from baselines import BitPruning
from baselines.weights.bit_pruning import Learnt, LearntOfInputs, learnable
from testbed.cost import count_multiplications, count_parameters, weights_by_layer
from testbed.method import load_pruned
from testbed.network_file import save_network
from testbed.quantisation import quantised
from testbed.special_costs import bits_of, special_costs


def values() -> Tensor:
    return torch.randn(400, generator=torch.Generator().manual_seed(0))


def at(length: float) -> Tensor:
    x = values()
    return learnable(x, x.min(), x.max(), torch.tensor(length))


def test_between_whole_lengths_both_neighbours_are_mixed() -> None:
    x = values()
    for whole in (1, 3, 7):
        fewer, more = (
            quantised(x, x.min(), x.max(), torch.tensor(float(n))) for n in (whole, whole + 1)
        )
        assert torch.equal(at(whole), fewer)
        torch.testing.assert_close(at(whole + 0.3), 0.7 * fewer + 0.3 * more)
    assert torch.equal(at(0.2), at(1.0)) and torch.equal(at(20.0), at(12.0))


@pytest.mark.parametrize("length", [1.4, 3.5, 5.0, 6.75])
def test_the_gradient_of_a_length_is_the_slope_to_the_next_one(length: float) -> None:
    x, direction = values(), values().flip(0)
    n = torch.tensor(length, requires_grad=True)
    (direction * learnable(x, x.min(), x.max(), n)).sum().backward()
    slope = (direction * (at(int(length) + 1) - at(int(length)))).sum()
    assert n.grad is not None
    torch.testing.assert_close(n.grad, slope)
    if length % 1:  # where the loss is linear in n, up to the ends
        ahead, behind = ((direction * at(length + d)).sum() for d in (0.1, -0.1))
        torch.testing.assert_close(n.grad, (ahead - behind) / 0.2, rtol=1e-3, atol=1e-3)


def test_values_pass_their_gradient_unless_they_lie_beyond_the_ends() -> None:
    x = torch.tensor([-2.0, -0.5, 0.3, 2.0], requires_grad=True)
    learnable(x, torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(2.5)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0]


def test_a_layers_inputs_keep_the_ends_that_training_saw() -> None:
    learnt = LearntOfInputs(4.0)
    learnt.eval()
    assert bits_of(learnt(values())) == 4, "before any training, those of the batch"
    learnt.train()
    for _ in range(60):
        learnt(values())
    learnt.eval()
    fixed = learnt.kept()
    assert fixed.low == pytest.approx(values().min()) and fixed.bits == 4
    wider = 3 * values()
    assert torch.equal(fixed(wider), learnt(wider))
    assert fixed(wider).max() <= values().max() * 1.001
    assert torch.equal(Learnt(4.0)(values()), at(4.0))


def pruned(epochs: int = 4, kind: str = "conv", **options: Any) -> tuple[nn.Module, dict]:
    reports: list[Mapping[str, float]] = []
    method = BitPruning(**options)
    network = method.prune(tiny.trained(kind), tiny.splits(), tiny.run(epochs, reports=reports))
    (said,) = (r for r in reports if "bits" in r)
    return network, dict(said)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_what_comes_back_has_the_bits_that_were_learnt(kind: str) -> None:
    network, said = pruned(kind=kind)
    x = tiny.splits().normalised(tiny.splits().validation)[:8]
    found = special_costs(network, count_multiplications(network, x), x)
    assert found["mean_bits"] <= said["bits"] < 8
    assert said["learned_bits"] - 0.05 <= said["bits"] < said["learned_bits"] + 1
    dense = tiny.trained(kind)
    cost = count_multiplications(network, x)
    assert cost.multiplications == count_multiplications(dense, x).multiplications
    assert found["bit_operations"] < 64 * cost.multiplications
    assert found["footprint_bytes"] < 2 * count_parameters(dense)
    assert count_parameters(network) == count_parameters(dense)
    for weight in weights_by_layer(network).values():
        assert bits_of(weight) <= 8


def test_a_great_push_leaves_one_bit() -> None:
    length = Learnt(8.0)
    optimizer = torch.optim.SGD(length.parameters(), lr=0.0002)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = (length(values()) - values()).square().mean() + 100 * (length.length - 1).relu()
        loss.backward()
        optimizer.step()
    assert length.length.item() == pytest.approx(1, abs=0.05)


def test_a_pressure_that_takes_no_bit_off_is_refused() -> None:
    with pytest.raises(ValueError, match="no length fell from 8 bits"):
        pruned(pressure=1e-9)


def test_lengths_grow_where_only_the_data_speaks() -> None:
    length = Learnt(2.0)
    optimizer = torch.optim.SGD(length.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (length(values()) - values()).square().mean().backward()
        optimizer.step()
    assert length.length.item() > 2.5


@pytest.mark.parametrize("weigh_by", ["footprint", "multiplications"])
def test_what_weighs_more_is_pushed_more(weigh_by: str) -> None:
    model, data = tiny.trained(), tiny.splits()
    layers = {name: model.get_submodule(name) for name in weights_by_layer(model)}
    pushes = BitPruning(weigh_by=weigh_by)._pushes(model, layers, data)
    assert sum(pushes.values()) / len(pushes) == pytest.approx(1)
    if weigh_by == "footprint":
        sizes = {name: weight.numel() for name, weight in weights_by_layer(model).items()}
        ratio = pushes["conv2.weights"] / pushes["conv1.weights"]
        assert ratio == pytest.approx(sizes["conv2"] / sizes["conv1"])
        assert pushes["conv1.inputs"] / pushes["conv1.weights"] == 2 * 64 / sizes["conv1"]
    else:
        cost = count_multiplications(model, torch.zeros(1, 2, 8, 8)).per_layer
        ratio = pushes["conv2.inputs"] / pushes["conv1.weights"]
        assert ratio == pytest.approx((cost["conv2"] / cost["conv1"]).item())


def test_the_file_brings_the_quantisers_back(tmp_path: Path) -> None:
    network, _ = pruned(epochs=2)
    path = tmp_path / "network.safetensors"
    save_network(network, path)
    loaded = load_pruned(path, BitPruning(), tiny.network()).eval()
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), network.eval()(x))
    assert bits_of(loaded.conv2.input_quantiser(values())) <= 8
