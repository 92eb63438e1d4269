"""FBS: gates that begin as the network, choose for each image, and really skip."""

import copy
import math
from typing import Any

import pytest
import tiny
import torch
from small_networks import Net, conv, lived_in
from torch import Tensor, nn

from baselines import FBS
from baselines.runtime.fbs import GatedConv2d, gateable_convs, set_density
from testbed import compiled
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.prediction import evaluating

FORMS = ["paper", "reference"]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with the compiled operators, if they are built, and without."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "operators", lambda: None)
    elif compiled.operators() is None:
        pytest.skip("the compiled operators are not built")


def images(n: int = 4, channels: int = 2, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, channels, size, size, generator=generator)


def of_kind(kind: str) -> nn.Module:
    if kind in ("conv", "residual"):
        return tiny.trained(kind).eval()
    torch.manual_seed(0)
    options: dict[str, Any] = {"batch_norm": False} if kind == "conv without norm" else {}
    name = "conv" if options else kind
    width = {} if options else {"width": 0.25}
    return lived_in(build_backbone(name, (2, 8, 8), 3, **width, **options)).eval()


def gated_layers(network: nn.Module) -> list[GatedConv2d]:
    return [module for module in network.modules() if isinstance(module, GatedConv2d)]


def gated(kind: str, density: float, form: str = "paper") -> nn.Module:
    """With gates that differ from image to image, none of them shut or equal."""
    network = FBS(density=density, form=form).skeleton(of_kind(kind)).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in gated_layers(network):
        layer.phi.data = 0.3 * torch.rand(layer.phi.shape, generator=generator)
        layer.rho.data = 1 + torch.rand(layer.rho.shape, generator=generator)
        layer.beta.data = 0.5 + 0.3 * torch.randn(layer.beta.shape, generator=generator)
    return network


KINDS = ["conv", "residual", "resnet20", "m_cifarnet", "conv without norm"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_outputs_it_begins_as_the_network(kind: str, form: str) -> None:
    model = of_kind(kind)
    network = FBS(density=1, form=form).skeleton(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_filters_of_negative_scale_are_turned_round(form: str) -> None:
    model = of_kind("conv")
    model.norm1.weight.data[::2] *= -1
    model.norm1.running_mean += 0.1
    model.conv1.bias = nn.Parameter(torch.linspace(-1, 1, 6))
    network = FBS(density=1, form=form).skeleton(model).eval()
    assert (network.conv1.rho > 0).all()
    with torch.no_grad():
        torch.testing.assert_close(network(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gathered_is_what_the_masked_network_computes(kind: str, form: str) -> None:
    network = gated(kind, 0.5, form)
    masked = copy.deepcopy(network)
    for layer in gated_layers(masked):
        layer.forward = layer._masked  # type: ignore[method-assign]
    with torch.no_grad():
        expected = masked.eval()(images())
        torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_formulae_are_those_of_the_paper_and_of_the_code(form: str) -> None:
    layer = gated_layers(gated("conv", 0.5, form))[1]
    x = images(3, 6)
    g = (x.abs().mean((2, 3)) @ layer.phi.T + layer.rho).relu()
    m = torch.zeros_like(g).scatter(1, g.topk(4, dim=1).indices, 1.0)
    normed = layer.norm(nn.functional.conv2d(x, layer.weight, padding=1))
    g, m, beta = g[:, :, None, None], m[:, :, None, None], layer.beta[:, None, None]
    expected = m * g * (normed + beta) if form == "paper" else m * g * normed + m * beta
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("density", [0.2, 0.5, 0.7, 1.0])
def test_exactly_the_share_of_outputs_is_active_where_gates_are_not_tied(
    density: float, form: str
) -> None:
    for layer in gated_layers(gated("m_cifarnet", density, form)):
        gates = layer.gates(torch.rand(5, layer.in_channels))
        active = layer.chosen(gates).sum(dim=1)
        assert active.tolist() == [math.ceil(density * layer.out_channels)] * 5


def test_shut_and_tied_gates_are_not_computed_where_the_code_does_not() -> None:
    layers = {form: gated_layers(gated("conv", 0.5, form))[1] for form in FORMS}
    shut = torch.tensor([[0.0, 0, 0, 0, 0, 3, 2, 0]])
    tied = torch.tensor([[5.0, 4, 2, 2, 2, 2, 1, 0]])
    for layer in layers.values():
        assert layer.active == 4
        assert layer.chosen(shut)[0].nonzero().flatten().tolist() == [5, 6]
    assert layers["paper"].chosen(tied).sum() == 4
    assert layers["reference"].chosen(tied)[0].nonzero().flatten().tolist() == [0, 1]


def test_both_sides_of_a_conv_are_skipped_and_counted() -> None:
    network = gated("conv", 0.5)
    found = count_multiplications(network, images())
    assert found.decides_per_image
    # conv1: 2 inputs, 3 of 6 outputs; conv2: those 3, 4 of 8; and a gate for each
    assert found.per_layer["conv1"].tolist() == [9 * 64 * 2 * 3 + 2 * 6] * 4
    assert (found.per_layer["conv2"] <= 9 * 64 * 3 * 4 + 6 * 8).all()
    assert found.per_layer["conv2"].max() == 9 * 64 * 3 * 4 + 6 * 8


def test_images_differ_in_what_they_compute() -> None:
    layer = gated_layers(gated("conv", 0.5))[1]
    layer.phi.data = torch.randn(layer.phi.shape, generator=torch.Generator().manual_seed(0))
    chosen = layer.chosen(layer.gates(torch.rand(20, 6)))
    assert len(chosen.unique(dim=0)) > 1


def test_permuting_channels_permutes_outputs() -> None:
    layer = gated_layers(gated("conv", 0.5))[1]
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for tensor in (other.weight, other.phi, other.rho, other.beta):
            tensor.copy_(tensor[order])
        for tensor in (other.norm.running_mean, other.norm.running_var):
            tensor.copy_(tensor[order])
        torch.testing.assert_close(other(images(3, 6)), layer(images(3, 6))[:, order])


def test_an_image_of_zeros_and_gates_that_are_all_shut_give_what_the_mask_gives() -> None:
    layer = gated_layers(gated("conv", 0.5))[1]
    zeros = torch.zeros(1, 6, 8, 8)
    with torch.no_grad(), evaluating(layer):
        torch.testing.assert_close(layer(zeros), layer._masked(zeros))
        layer.rho.fill_(-9)
        assert not layer(images(1, 6)).any()


def test_weights_that_change_are_prepared_anew() -> None:
    layer = gated_layers(gated("conv", 0.5))[1]
    x = images(1, 6)
    with torch.no_grad():
        layer(x)
        for change in (
            lambda: layer.weight.mul_(2),
            lambda: layer.norm.running_mean.add_(1),
            lambda: layer.beta.add_(1),
            lambda: layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()}),
            lambda: layer.double().float(),
        ):
            change()
            fresh = copy.deepcopy(layer)
            fresh._folded = None
            assert torch.equal(layer(x), fresh(x))


@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_is_the_gradient_of_the_sum_of_gates(form: str) -> None:
    layer = gated_layers(gated("conv", 0.5, form))[1]
    x, penalty = images(3, 6), 0.01
    layer.train()
    gradients = []
    for own in (0.0, penalty):
        layer.penalty = own
        layer.zero_grad()
        loss = layer(x).square().mean()
        if not own:
            g = layer.gates(x.abs().mean((2, 3)))
            charged = g * layer.chosen(g) if form == "reference" else g
            loss = loss + penalty * charged.sum() / len(x)
        loss.backward()
        gradients.append(layer.rho.grad.clone())
    torch.testing.assert_close(*gradients)


def test_gates_learn_alone_first_and_the_density_goes_down_by_steps() -> None:
    method = FBS(density=0.4, gates_alone=0.2)
    assert method._stages(0) == [(0.4, 0, False)]
    assert method._stages(3) == [(1.0, 1, True), (0.7, 1, False), (0.4, 1, False)]
    many = method._stages(20)
    assert many[0] == (1.0, 4, True) and sum(epochs for _, epochs, _ in many) == 20
    assert [round(density, 3) for density, _, _ in many[1:]] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert FBS(density=1)._stages(5) == [(1.0, 1, True), (1.0, 4, False)]


def test_while_gates_learn_alone_no_other_weight_moves() -> None:
    model = tiny.trained()
    network = FBS(gates_alone=0.99).prune(model, tiny.splits(), tiny.run(1))
    signs = model.norm1.weight.sign()[:, None, None, None]
    assert torch.equal(network.conv1.weight, model.conv1.weight * signs)
    assert torch.equal(network.hidden.weight, model.hidden.weight)
    assert network.conv2.phi.any()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_every_conv_but_the_logits_is_gated_with_its_norm() -> None:
    assert gateable_convs(of_kind("conv")) == {"conv1": "norm1", "conv2": "norm2"}
    assert gateable_convs(tiny.trained("residual")) == {
        "stem": None,
        "conv1": "norm1",
        "conv2": None,
    }
    last = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert gateable_convs(last) == {"0": None}


def test_networks_that_cannot_be_gated_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="No conv of this network can be gated"):
        FBS().check_network(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), tiny.splits())

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.one(x if x.sum() > 0 else -x).mean((2, 3)))

    model = Net(forward, one=conv(2, 3), head=nn.Linear(3, 3))
    with pytest.raises(ValueError, match="must not depend on the values of tensors"):
        FBS().check_network(model, tiny.splits())


def test_the_density_can_be_set_anew() -> None:
    network = gated("conv", 0.5)
    costs = []
    for density in (0.25, 0.5, 1.0):
        set_density(gated_layers(network), density)
        costs.append(count_multiplications(network, images()).multiplications)
    assert costs == sorted(costs) and costs[0] < 0.6 * costs[-1]
