"""The network that comes back: it computes what the masked network computes."""

from itertools import product

import pytest
import tiny
import torch
from runtime_networks import (
    NAMES,
    assert_same,
    dense_of,
    own_decisions,
    random_actions,
    runtime,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rnp.execution.decision import DecisionNetwork
from rnp.execution.skipping import CHUNK
from rnp.runtime_network import RuntimeNetwork
from testbed import compiled
from testbed.operations import counting_multiplications
from testbed.prediction import autocast

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("operators", "no_gradients")


@pytest.mark.parametrize("n", [1, 2, 7, CHUNK + 3])
@pytest.mark.parametrize("name", NAMES)
def test_at_set_decisions_its_logits_are_the_masked_networks(name: str, n: int) -> None:
    network, shape = runtime(name)
    images, actions = torch.randn(n, *shape), random_actions(network, n)
    assert_same(network.skipping(images, actions), network.masked(images, actions))


class Viewing(nn.Module):
    """Flattens as older code does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 3)
        self.classifier = nn.Linear(8 * 4 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images).relu())
        logits: Tensor = self.classifier(maps.view(maps.size(0), -1))
        return logits


@pytest.mark.parametrize("n", [1, CHUNK + 3])
def test_a_view_that_keeps_only_the_batch_takes_the_prefixes(n: int) -> None:
    network = RuntimeNetwork(Viewing(), 4)
    images, actions = torch.randn(n, 2, 8, 8), random_actions(network, n)
    assert [conv.name for conv in network.flow.convs] == ["second"]
    assert_same(network.skipping(images, actions), network.masked(images, actions))
    with counting_multiplications(network) as by_layer:
        network.skipping(images, torch.zeros_like(actions))
    assert by_layer["classifier"] == n * 2 * 4 * 4 * 3


@pytest.mark.parametrize("n", [1, CHUNK + 20])
@pytest.mark.parametrize("name", NAMES)
def test_its_own_decisions_are_the_masked_networks_where_the_q_values_differ(
    name: str, n: int
) -> None:
    network, shape = runtime(name)
    images = torch.randn(n, *shape)
    actions, leads = own_decisions(network, images)
    sure = (leads > 1e-4).all(dim=1)
    assert sure.sum() >= 0.9 * n
    assert_same(network(images)[sure], network.masked(images)[sure])
    if n > 1:
        assert len(actions.unique()) > 1, "a network that always does the same shows nothing"


@pytest.mark.parametrize("name", ["conv", "branching", "residual"])
def test_an_images_logits_do_not_depend_on_the_batch(name: str) -> None:
    network, shape = runtime(name)
    images = torch.randn(CHUNK + 9, *shape)
    together = network(images)
    alone = torch.cat([network(image) for image in images.split(1)])
    assert_same(together, alone)
    order = torch.randperm(len(images))
    assert_same(network(images[order]), together[order])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_no_logits(name: str) -> None:
    network, shape = runtime(name)
    assert network(torch.zeros(0, *shape)).shape == (0, network(torch.zeros(1, *shape)).shape[1])


@pytest.mark.parametrize("name", ["conv", "resnet20", "branching"])
def test_in_bfloat16_it_agrees_with_the_masked_network_to_its_precision(name: str) -> None:
    network, shape = runtime(name)
    images, actions = torch.randn(9, *shape), random_actions(network, 9)
    with autocast("bfloat16", CPU):
        for few in (1, 9):
            ours = network.skipping(images[:few], actions[:few])
            assert_same(
                ours.float(), network.masked(images[:few], actions[:few]).float(), tolerance=0.05
            )
            assert ours.dtype is torch.bfloat16


def test_the_decision_network_runs_in_float32_under_autocast() -> None:
    network, shape = runtime("conv")
    seen: list[torch.dtype] = []
    network.decision.register_forward_hook(
        lambda module, args, result: seen.extend([args[1].dtype, result[0].dtype])
    )
    with autocast("bfloat16", CPU):
        network(torch.randn(5, *shape))
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_all_groups_kept_gives_the_dense_networks_logits(name: str) -> None:
    network, shape = runtime(name)
    torch.manual_seed(0)
    dense, _ = dense_of(name)
    images = torch.randn(5, *shape)
    actions = torch.full((5, len(network.flow.convs)), network.flow.groups - 1)
    assert_same(network.skipping(images, actions), dense(images))


def test_while_training_gradients_reach_the_backbone_through_the_masks() -> None:
    network, shape = runtime("conv")
    network.train()
    with torch.enable_grad():
        network(torch.randn(4, *shape)).sum().backward()
    assert network.get_parameter("conv1.weight").grad is not None
    assert network.get_parameter("conv1.weight").grad.abs().sum() > 0
    assert network.decision.decoder.weight.grad is None


def test_in_evaluation_mode_no_gradient_flows() -> None:
    network, shape = runtime("conv")
    with torch.enable_grad():
        assert not network(torch.randn(4, *shape)).requires_grad


def test_functional_dropout_follows_the_networks_mode_not_that_of_the_trace() -> None:
    network, shape = runtime("branching")
    images, actions = torch.randn(3, *shape), random_actions(network, 3)
    assert torch.equal(network.masked(images, actions), network.masked(images, actions))
    network.train()
    assert not torch.equal(network.masked(images, actions), network.masked(images, actions))


@pytest.mark.parametrize("name", ["decision", "flow", "masked", "train"])
def test_a_backbone_with_a_part_of_a_taken_name_is_an_error(name: str) -> None:
    backbone = tiny.network()
    backbone._modules[name] = nn.ReLU()
    with pytest.raises(ValueError, match=f"a part called '{name}'"):
        RuntimeNetwork(backbone)


def test_the_compiled_decision_is_the_modules() -> None:
    if compiled.operators() is None:
        pytest.skip("without them there is nothing to compare")
    torch.manual_seed(4)
    for channels, n in product((3, 32, 70), (1, 2, 33)):
        decision = DecisionNetwork([channels], 4, 24, 40)
        decision.get_buffer("mean0").normal_()
        decision.get_buffer("deviation0").uniform_(0.5, 2)
        decision.offsets.normal_()
        features, state = 3 * torch.randn(n, channels), torch.randn(n, 40)
        for before in (None, state):
            plain = decision(0, features, before)
            fast = decision(0, features, before, decision.prepare(0))
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
            for prepared in (None, decision.prepare(0)):
                with FlopCounterMode(display=False) as counter:
                    decision(0, features, before, prepared)
                products = n * (24 * channels + 120 * (24 + 40) + 40 * 4)
                assert counter.get_total_flops() == 2 * products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_pooling_is_the_mean_of_each_images_own_channels(dtype: torch.dtype) -> None:
    operators = compiled.operators()
    if operators is None:
        pytest.skip("without them there is nothing to compare")
    batches = [torch.randn(2, 70, 5, 3).to(dtype), torch.randn(3, 33, 5, 3).to(dtype)]
    pooled = operators.pooled(batches, [4, 0, 1, 3, 2], 70)
    for row, (batch, i) in {4: (0, 0), 0: (0, 1), 1: (1, 0), 3: (1, 1), 2: (1, 2)}.items():
        expected = batches[batch][i].float().mean(dim=(1, 2))
        torch.testing.assert_close(pooled[row, : len(expected)], expected, rtol=1e-5, atol=1e-6)
        assert not pooled[row, len(expected) :].any()
