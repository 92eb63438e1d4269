"""The weights of the network that comes back: their names, changes, copies and files."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from runtime_networks import (
    Branching,
    assert_same,
    dense_of,
    random_actions,
    runtime,
)
from torch import Tensor, nn

from rnp.runtime_network import RuntimeNetwork
from testbed.cost import weights_by_layer

pytestmark = pytest.mark.usefixtures("operators", "no_gradients")


def test_its_weights_have_the_backbones_names_and_the_decision_networks() -> None:
    dense, network = dense_of("resnet20")
    network(torch.randn(2, 3, 16, 16))
    added = set(network.state_dict()) - set(dense.state_dict())
    own = {name for name in added if not name.startswith("decision.")} - {"decision_prefixes"}
    norms = [conv.name.replace("conv1", "norm2") for conv in network.flow.convs]
    assert own == {f"{norm}.prefix_{each}" for norm in norms for each in ("mean", "var")}
    found = [name for name in weights_by_layer(network) if not name.startswith("decision.")]
    assert found == list(weights_by_layer(dense))


def test_hooks_of_a_layer_see_the_prefixes() -> None:
    network, shape = runtime("conv")
    seen: list[tuple[int, int]] = []
    network.get_submodule("conv3").register_forward_hook(
        lambda module, args, result: seen.append((args[0].shape[1], result.shape[1]))
    )
    network.skipping(torch.randn(2, *shape), torch.tensor([[0, 1, 3], [2, 3, 0]]))
    two, three, _ = network.flow.convs
    expected = {(two.prefixes[0], three.prefixes[1]), (two.prefixes[2], three.prefixes[3])}
    assert set(seen) == expected


def changes() -> dict[str, Any]:
    def in_place(network: RuntimeNetwork) -> None:
        network.get_parameter("conv3.weight").mul_(1.5)

    def statistics(network: RuntimeNetwork) -> None:
        network.get_buffer("norm3.prefix_mean").add_(0.5)

    def decision(network: RuntimeNetwork) -> None:
        network.decision.decoder.weight.neg_()

    def another_parameter(network: RuntimeNetwork) -> None:
        layer: Any = network.get_submodule("hidden")
        layer.weight = nn.Parameter(layer.weight * 2)

    def load(network: RuntimeNetwork) -> None:
        torch.manual_seed(9)
        state = {k: v + 0.1 * torch.rand(v.shape) for k, v in network.state_dict().items()}
        network.load_state_dict({**network.state_dict(), **state}, strict=False)

    def load_and_assign(network: RuntimeNetwork) -> None:
        state = network.state_dict()
        state = {k: v * 1.25 if v.is_floating_point() else v for k, v in state.items()}
        network.load_state_dict(state, assign=True)

    def fine_tune(network: RuntimeNetwork) -> None:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        with torch.enable_grad():
            for _ in range(2):
                optimizer.zero_grad()
                network(torch.randn(8, 2, 16, 16)).square().mean().backward()
                optimizer.step()
        network.eval()

    def fused_step(network: RuntimeNetwork) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
        with torch.enable_grad():  # in evaluation mode, as where batch norms stay as they are
            actions = random_actions(network, 8)
            network.masked(torch.randn(8, 2, 16, 16), actions).square().mean().backward()
        optimizer.step()

    def parameters_one_after_the_other(network: RuntimeNetwork) -> None:
        layer: Any = network.get_submodule("hidden")
        for _ in range(6):  # so that one may lie where the first lay
            layer.weight = nn.Parameter(layer.weight * 1.2)

    def another_module(network: RuntimeNetwork) -> None:
        network.norm3 = nn.BatchNorm2d(8).eval()

    def data_then_mode(network: RuntimeNetwork) -> None:
        network.get_parameter("conv2.weight").data *= 2
        network.eval()

    def precision(network: RuntimeNetwork) -> None:
        network.double()

    given = (in_place, statistics, decision, another_parameter, load, load_and_assign, fine_tune,
             fused_step, parameters_one_after_the_other, another_module, data_then_mode,
             precision)  # fmt: skip
    return {change.__name__: change for change in given}


@pytest.mark.parametrize("change", changes())
def test_it_notices_that_weights_changed(change: str) -> None:
    network, shape = runtime("conv")
    images = torch.randn(6, *shape)
    before = network(images)
    changes()[change](network)
    images = images.to(network.get_parameter("conv1.weight").dtype)
    ours = network(images)
    assert_same(ours, network.masked(images))
    if change != "precision":
        assert not torch.allclose(ours, before)


def test_cast_to_another_precision_it_computes_what_the_masked_network_does() -> None:
    network, shape = runtime("conv")
    network.to(torch.bfloat16)
    images, actions = torch.randn(5, *shape).bfloat16(), random_actions(network, 5)
    ours, masked = network.skipping(images, actions), network.masked(images, actions)
    assert network(images).dtype is torch.bfloat16
    torch.testing.assert_close(ours, masked, rtol=0.1, atol=0.1)


def test_to_skip_in_training_mode_is_to_evaluate_and_changes_nothing() -> None:
    network = RuntimeNetwork(Branching()).train()
    images, actions = torch.randn(4, 2, 8, 8), random_actions(network, 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    skipped = network.skipping(images, actions)
    assert network.training and all(module.training for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(skipped, network.eval().skipping(images, actions))


@pytest.mark.parametrize(
    ("images", "actions", "message"),
    [
        (torch.zeros(2, 16, 16), None, r"Expected images \(n, C, H, W\), got shape \(2, 16, 16\)"),
        (torch.zeros(2, 2, 16, 16), torch.zeros(1, 3).long(), r"here \(2, 3\), got \(1, 3\)"),
        (torch.zeros(2, 2, 16, 16), torch.full((2, 3), -1), "from 0 to 3, got -1 to -1"),
        (torch.zeros(2, 2, 16, 16), torch.full((2, 3), 4), "from 0 to 3, got 4 to 4"),
    ],
)
def test_images_and_actions_of_another_shape_are_refused(
    images: Tensor, actions: Tensor | None, message: str
) -> None:
    network, _ = runtime("conv")
    with pytest.raises(ValueError, match=message):
        network.skipping(images, actions)


def test_copies_and_files_of_it_compute_the_same() -> None:
    network, shape = runtime("resnet56")
    images = torch.randn(4, *shape)
    expected = network(images)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(other(images), expected)
    fresh, _ = runtime("resnet56")
    for parameter in fresh.parameters():
        parameter.add_(0.1)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(images), expected)


def test_a_copy_does_not_share_what_was_prepared() -> None:
    network, shape = runtime("conv")
    images = torch.randn(3, *shape)
    expected = network(images)
    other = copy.deepcopy(network)
    other.get_parameter("conv3.weight").zero_()
    other(images)
    assert torch.equal(network(images), expected)


def test_it_runs_where_weights_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        network, shape = runtime("conv")
        images, actions = torch.randn(3, *shape), random_actions(network, 3)
        assert_same(network.skipping(images, actions), network.masked(images, actions))
