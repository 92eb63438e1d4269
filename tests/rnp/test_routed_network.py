"""A routed network computes a branch for those images alone that take it."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small_routes import SMALL, deciding, images, model
from torch import Tensor, nn

from rnp.batch_norm_statistics import by_batch, estimate_statistics
from rnp.dropped_blocks import BlockCost, RandomBlocks, random_blocks
from rnp.execution.routed_run import RoutedRun
from rnp.routed_network import FixedRoute, RoutedNetwork
from testbed.cost import count_multiplications, multiplications_by_layer
from testbed.inference_form import inference_form
from testbed.network_file import load_network, save_network
from testbed.training_cost import forward_multiplications

KINDS = ["one block", "in place", "resnet20"]


def some_actions(network: RoutedNetwork, n: int) -> Tensor:
    """Of each image its own."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, (n, len(network.flow.blocks)), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_with_every_branch_it_is_the_plain_network(kind: str) -> None:
    network = RoutedNetwork(model(kind), **SMALL).eval()
    assert torch.equal(network.whole(images()), model(kind)(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_compacted_is_what_runs_masked_and_each_image_alone(kind: str) -> None:
    network, x = RoutedNetwork(model(kind), **SMALL).eval(), images()
    actions = some_actions(network, len(x))
    with torch.no_grad():
        compacted = network.routed(x, actions)
        alone = [network.routed(*each) for each in zip(x.split(1), actions.split(1), strict=True)]
        torch.testing.assert_close(compacted, network.masked(x, actions), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compacted, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(compacted, network.whole(x), rtol=1e-3), "or nothing is shown"


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_decisions_are_those_of_each_image(kind: str) -> None:
    network, x = deciding(kind), images(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        run = network.routed_run(x)
        taken = torch.stack(run.actions, dim=1)
        assert 0 < taken.float().mean() < 1 and len(taken.unique(dim=0)) > 1
        for other in (network(x[order]), network.masked(x)[order]):
            torch.testing.assert_close(run.logits[order], other, rtol=1e-4, atol=1e-5)


def test_a_skipped_block_is_the_identity() -> None:
    plain = model("resnet20")
    network = RoutedNetwork(plain, **SMALL).eval()
    for step, block in enumerate(network.flow.blocks):
        without: Any = copy.deepcopy(plain)
        # The sum is zero and the shortcut, if both norms of the branch give zero.
        for parameter in without.get_submodule(f"{block.name}.norm2").parameters():
            nn.init.zeros_(parameter)
        actions = torch.ones(9, len(network.flow.blocks), dtype=torch.int64)
        actions[:, step] = 0
        found, expected = network.routed(images(), actions), without(images())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_the_sum_of_what_is_computed(kind: str) -> None:
    network, data = deciding(kind), tiny.splits()
    cost = BlockCost(network, data)
    dense = multiplications_by_layer(model(kind), images(1)).total()
    assert cost.dense == dense
    n_blocks = len(network.flow.blocks)
    chosen = list(product((0, 1), repeat=n_blocks))[:: max(1, 2**n_blocks // 8)]
    for actions in chosen:
        forced = copy.deepcopy(network)
        for step, action in enumerate(actions):
            forced.decision.offsets[step] = torch.tensor([0.0, 1e6 if action else -1e6])
        assert multiplications_by_layer(forced, images(1)).total() == cost(actions)
    assert cost((1,) * n_blocks) == dense + sum(
        network.decision.multiplications(step) for step in range(n_blocks)
    )
    counted = count_multiplications(network, images(12))
    run = network.routed_run(images(12))
    assert counted.decides_per_image
    expected = cost.of_images(torch.stack(run.actions, dim=1)).long()
    assert torch.equal(counted.per_image, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_can_be_forked_at_every_block(kind: str) -> None:
    network, x = RoutedNetwork(model(kind), **SMALL).eval(), images(4)

    def ends(run: RoutedRun) -> list[RoutedRun]:
        with torch.no_grad():
            if run.observe() is None:
                return [run]
            if len(run.actions) >= 3:
                run.act(torch.ones(4, dtype=torch.int64))
                return ends(run)
            forks = [run.fork(), run.fork()]
            for action, fork in enumerate(forks):
                fork.act(torch.full((4,), action))
            return [end for fork in forks for end in ends(fork)]

    for end in ends(network.started(x)):
        expected = network.routed(x, torch.stack(end.actions, dim=1))
        torch.testing.assert_close(end.logits, expected, rtol=1e-5, atol=1e-6)


def test_batch_norms_of_a_branch_see_the_images_alone_that_take_it() -> None:
    network = RoutedNetwork(model("one block"), **SMALL)
    x, few = images(12), torch.zeros(12, 1, dtype=torch.int64)
    few[:5] = 1
    norm: Any = network.norm1
    with torch.no_grad(), by_batch(network, momentum=None):
        norm.num_batches_tracked.zero_()
        network.routed(x, few)
    inner = network.conv1(network.stem(x[:5]).relu())
    torch.testing.assert_close(norm.running_mean, inner.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_branch_that_few_images_take_runs_on_the_statistics_that_it_has() -> None:
    network = RoutedNetwork(model("one block"), **SMALL).train()
    norm: Any = network.norm1
    before = norm.running_mean.clone()
    x, one = images(12), torch.zeros(12, 1, dtype=torch.int64)
    one[3] = 1
    found = network.routed(x, one)
    assert torch.equal(norm.running_mean, before) and norm.training
    torch.testing.assert_close(found[3:4], copy.deepcopy(network).eval().routed(x, one)[3:4])


def test_a_branch_that_no_image_takes_keeps_its_statistics() -> None:
    network = RoutedNetwork(model("one block"), **SMALL)
    norm: Any = network.norm1
    before = norm.running_mean.clone()
    nobody = torch.zeros(1, 1, dtype=torch.int64)
    estimate_statistics(network, tiny.splits(), tiny.run(), lambda n: nobody.expand(n, -1))
    assert torch.equal(norm.running_mean, before)
    estimate_statistics(network, tiny.splits(), tiny.run(), lambda n: (1 + nobody).expand(n, -1))
    assert not torch.allclose(norm.running_mean, before)


def test_gradients_reach_a_branch_from_the_images_that_take_it() -> None:
    network: Any = RoutedNetwork(model("one block"), **SMALL).train()
    x, some = images(12), torch.zeros(12, 1, dtype=torch.int64)
    some[::2] = 1
    network.routed(x, some).square().sum().backward()
    assert network.conv1.weight.grad.abs().sum() > 0
    network.zero_grad()
    network.routed(x, torch.zeros_like(some)).square().sum().backward()
    assert network.stem.weight.grad.abs().sum() > 0
    assert network.conv1.weight.grad.abs().sum() == 0, "zero, not none, which optimisers refuse"


@pytest.mark.parametrize("taken", [0, 1])
def test_every_step_of_a_training_reaches_the_whole_backbone_and_never_the_decisions(
    taken: int,
) -> None:
    """Whether a batch leaves a block out or not: a fused optimiser breaks where that changes."""
    network = deciding("resnet20").train()
    n_blocks = len(network.flow.blocks)
    network.routed(images(), torch.full((9, n_blocks), taken)).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith("decision."), name


def test_training_is_counted_as_if_every_branch_was_computed() -> None:
    plain = model("resnet20")
    dense = multiplications_by_layer(plain, images(1)).total()
    network = RandomBlocks(RoutedNetwork(plain, **SMALL))
    for each in (network, network.network):
        assert forward_multiplications(each, (2, 8, 8), torch.device("cpu")) == dense


def test_random_blocks_are_all_kinds_and_a_quarter_whole() -> None:
    drawn = random_blocks(4000, 7, generator=torch.Generator().manual_seed(0))
    whole = (drawn == 1).all(dim=1).float().mean().item()
    assert whole == pytest.approx(0.25 + 0.75 / 8, abs=0.03), "and those whose share draws all"
    assert drawn.float().mean().item() == pytest.approx(0.25 + 0.75 / 2, abs=0.03)
    sizes = drawn.sum(dim=1).bincount()
    assert len(sizes) == 8 and (sizes[:7] > 250).all(), "any number of blocks is as likely"


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_that_runs_best_gives_the_same(kind: str) -> None:
    network, x = deciding(kind), images(20)
    with torch.no_grad():
        form = inference_form(network, x[:1])
        assert (form is network) == (kind == "in place"), "there a value is written past a block"
        for batch in (x, x[:1]):
            torch.testing.assert_close(form(batch), network(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_route_computes_and_costs_what_the_same_actions_do(
    kind: str, tmp_path: Path
) -> None:
    plain = model(kind)
    network, x = RoutedNetwork(plain, **SMALL).eval(), images()
    actions = some_actions(network, 1)
    kept = [bool(action) for action in actions[0]]
    fixed = FixedRoute(plain, kept).eval()
    with torch.no_grad():
        expected = network.routed(x, actions.expand(len(x), -1))
        torch.testing.assert_close(fixed(x), expected, rtol=1e-4, atol=1e-5)
        form = inference_form(fixed, x)
        torch.testing.assert_close(form(x), expected, rtol=1e-3, atol=1e-4)
    counted = count_multiplications(fixed, x)
    cost = BlockCost(network, tiny.splits(), deciding=False)
    assert counted.multiplications == cost(tuple(actions[0].tolist()))
    assert not counted.decides_per_image
    save_network(fixed, tmp_path / "fixed.safetensors")
    loaded = load_network(tmp_path / "fixed.safetensors", FixedRoute(model(kind))).eval()
    assert torch.equal(loaded(x), fixed(x))
    assert torch.equal(copy.deepcopy(loaded)(x), fixed(x))


def test_wrong_images_and_actions_are_refused() -> None:
    network = RoutedNetwork(model("one block"), **SMALL)
    with pytest.raises(ValueError, match=r"Expected images \(n, C, H, W\)"):
        network.routed(images()[0])
    with pytest.raises(ValueError, match=r"Expected actions \(images, blocks\), here \(9, 1\)"):
        network.routed(images(), torch.zeros(9, 2, dtype=torch.int64))


def test_a_block_that_does_not_keep_the_shape_is_refused_when_it_runs() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 3, padding=1)
            self.wide = nn.Upsample(size=(8, 8))
            self.out = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            small = self.squeeze(self.conv(x))
            logits: Tensor = self.out((small + self.wide(self.conv(small))).mean(dim=(2, 3)))
            return logits

    network = RoutedNetwork(Broadcast(), **SMALL)
    with pytest.raises(ValueError, match="that keeps the shape of its input"):
        BlockCost(network, tiny.splits())
