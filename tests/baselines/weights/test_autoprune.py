"""AutoPrune: auxiliary parameters that learn what stays."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn
from torch.nn.utils import parametrize

from baselines import AutoPrune
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.weights.autoprune import Gate, Masked, even_steps, norms_of_readers
from testbed.cost import count_multiplications, sparsity, weights_by_layer

FORMS = ["leaky_relu", "softplus"]


def gated(weight: torch.Tensor, m: torch.Tensor, form: str = "leaky_relu") -> tuple[Masked, Gate]:
    gate = Gate(torch.ones(m.numel()), form)
    with torch.no_grad():
        gate.m.copy_(m.flatten())
    return Masked(gate, torch.arange(m.numel()).view_as(weight)), gate


def learn(w: torch.Tensor, m: torch.Tensor, data: str, push: float, steps: int = 200) -> Gate:
    """What m becomes where the target needs the first input (of two) only, at a weight of 1."""
    masked, gate = gated(w, m)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=generator)
    y = x[:, 0] if data == "first" else torch.zeros(64)
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.05)
    for _ in range(steps):
        gate.learns = True
        loss = F.mse_loss(x @ masked(w), y) + push * gate.h().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate


def test_a_useless_weight_dies_and_a_useful_one_stays() -> None:
    gate = learn(torch.tensor([1.0, 0.5]), torch.tensor([0.3, 0.3]), "first", push=0.02)
    assert gate.kept.tolist() == [True, False]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_useful_weight_comes_back_and_one_of_the_wrong_sign_does_not(sign: float) -> None:
    gate = learn(torch.tensor([sign, 0.5]), torch.tensor([-0.1, 0.3]), "first", push=0.0)
    assert bool(gate.kept[0]) == (sign > 0)


@pytest.mark.parametrize("form", FORMS)
def test_m_moves_as_the_size_of_its_weight_would(form: str) -> None:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(4, 5, generator=generator)
    m = torch.rand(4, 5, generator=generator) + 0.1
    masked, gate = gated(w, m, form)
    x, y = torch.randn(30, 5, generator=generator), torch.randn(30, 4, generator=generator)
    gate.learns = True
    F.mse_loss(x @ masked(w).T, y).backward()
    size = w.abs().requires_grad_()  # as all m > 0, the loss is that of w itself
    F.mse_loss(x @ (w.sign() * size).T, y).backward()
    assert size.grad is not None and gate.m.grad is not None
    slope = gate.slope().view_as(w)
    torch.testing.assert_close(gate.m.grad.view_as(w), size.grad * slope)


@pytest.mark.parametrize("form", FORMS)
def test_the_push_has_the_slope_that_stands_in_for_the_steps(form: str) -> None:
    gate = Gate(torch.ones(6), form)
    with torch.no_grad():
        gate.m.copy_(torch.tensor([-3.0, -0.5, -0.01, 0.01, 0.5, 3.0]))
    (gradient,) = torch.autograd.grad(gate.h().sum(), gate.m)
    torch.testing.assert_close(gradient, gate.slope())
    assert (gradient > 0).all(), "what is pruned can come back"


def test_weights_learn_behind_the_mask_while_m_stays() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    masked, gate = gated(w.detach(), torch.tensor([[0.2, -0.2, 0.1]]))
    masked(w).sum().backward()
    assert w.grad is not None and w.grad.tolist() == [[1.0, 0.0, 1.0]]
    assert gate.m.grad is None


def test_without_a_push_nothing_is_pruned_and_the_user_is_told() -> None:
    for unit in ("weights", "filters"):
        with pytest.raises(ValueError, match="Nothing was removed"):
            method = AutoPrune(pressure=1e-9, unit=unit)
            method.prune(tiny.trained(), tiny.splits(), tiny.run(2))


def test_more_pressure_leaves_more_zeros_and_every_layer_a_weight() -> None:
    found = []
    for pressure in (0.5, 2.0, 50.0):
        network = AutoPrune(pressure=pressure).prune(tiny.trained(), tiny.splits(), tiny.run(4))
        found.append(sparsity(network))
        assert all((weight != 0).any() for weight in weights_by_layer(network).values())
    assert found == sorted(found) and found[0] < 0.5 < found[2]


def test_zeros_stay_in_the_second_half() -> None:
    reports: list = []
    network = AutoPrune().prune(tiny.trained(), tiny.splits(), tiny.run(4, reports=reports))
    (learnt,) = (r["sparsity"] for r in reports if "sparsity" in r)
    assert sparsity(network) == learnt > 0.1
    assert network.state_dict().keys() == tiny.network().state_dict().keys()


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_filters_are_gone_and_cost_nothing(kind: str) -> None:
    model, reports = tiny.trained(kind), []
    method = AutoPrune(unit="filters", pressure=20.0)
    network = method.prune(model, tiny.splits(), tiny.run(4, reports=reports))
    image = torch.zeros(1, 2, 8, 8)
    before, after = (count_multiplications(each, image) for each in (model, network))
    assert after.multiplications < 0.8 * before.multiplications
    assert after.nonzero_multiplications == after.multiplications
    (kept,) = (r["channels_kept"] for r in reports if "channels_kept" in r)
    layers = ["conv1", "conv2"] if kind == "conv" else ["conv1"]
    sizes = [
        [each.get_submodule(layer).weight.shape[0] for layer in layers] for each in (model, network)
    ]
    assert kept == sum(sizes[1]) / sum(sizes[0])
    assert all(size > 0 for size in sizes[1])


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_a_masked_channel_is_a_removed_one(kind: str) -> None:
    model = tiny.trained(kind)
    example = example_images(tiny.splits(), torch.device("cpu"))
    groups = channel_groups(model, example)
    removed = {name: [0, 2] for name in groups}
    smaller = remove_channels(model, example, groups, removed)
    network = copy.deepcopy(model)
    for group in groups.values():
        norms, mean = norms_of_readers(network, group)
        readers = [network.get_submodule(reader).weight for reader in group.readers]
        total = sum(weight.abs().sum() for weight in readers)
        torch.testing.assert_close(norms.sum(), total)
        assert mean == pytest.approx(total.item() / sum(w.numel() for w in readers))
        gate = Gate(even_steps(norms), "leaky_relu")
        with torch.no_grad():
            gate.m[[0, 2]] = -1.0
        for reader, read in group.readers.items():
            layer = network.get_submodule(reader)
            shape = [1, -1, *[1] * (layer.weight.ndim - 2)]
            masked = Masked(gate, torch.from_numpy(read.channels).view(shape))
            parametrize.register_parametrization(layer, "weight", masked)
    with torch.no_grad():
        torch.testing.assert_close(
            network.eval()(example), smaller.eval()(example), rtol=1e-4, atol=1e-5
        )


def test_channels_start_in_the_order_of_their_weights_in_even_steps() -> None:
    start = even_steps(torch.tensor([5.0, 1.0, 3.0]))
    assert start.tolist() == [1.5, 0.5, 1.0]


def test_half_of_the_pressure_takes_about_a_quarter_of_the_channels() -> None:
    kept = []
    for pressure in (0.5, 1.0):
        reports: list = []
        method = AutoPrune(unit="filters", pressure=pressure)
        method.prune(tiny.trained(), tiny.splits(), tiny.run(8, reports=reports))
        kept += [r["channels_kept"] for r in reports if "channels_kept" in r]
    assert kept[0] > kept[1] > 0.3


def test_all_training_images_are_those_of_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    data = tiny.splits()
    model = tiny.trained()
    model.conv1.register_forward_pre_hook(  # black ones are what multiplications are counted on
        lambda module, images: seen.append((len(images[0]), module.training and images[0].any()))
    )
    AutoPrune(mask_share=0.25).prune(model, data, tiny.run(4))
    trained_on = sum(n for n, training in seen if training)
    assert trained_on == 4 * len(data.train)


def test_networks_and_shares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no conv and no linear layer"):
        AutoPrune().check_network(nn.Sequential(nn.Flatten()), tiny.splits())
    with pytest.raises(ValueError, match="No channel of this network can be removed"):
        method = AutoPrune(unit="filters")
        method.check_network(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), tiny.splits())
    with pytest.raises(ValueError, match="takes 0 of 96 training images"):
        AutoPrune(mask_share=0.001).prune(tiny.trained(), tiny.splits(), tiny.run(2))
