"""Masked passes: against forwards written by hand, and what forks of a pass share."""

import copy
import itertools

import pytest
import tiny
import torch
from torch import Tensor, nn
from two_decisions import Adds, three_convs

from rnp.execution.masked_run import MaskedRun, prefix_mask
from rnp.structure.channel_flow import ChannelFlow, channel_flow

GROUPS = 3


class AddsToAnAlias(Adds):
    """What is written into has another name than what others still need."""

    def forward(self, images: Tensor) -> Tensor:
        outer = self.stem(images)
        inner = self.conv2(self.act(self.conv1(outer)))
        alias = outer.view(-1, 6, 8, 8).add_(inner)
        logits: Tensor = self.classifier(self.act(alias).mean(dim=(2, 3)))
        return logits


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def all_actions(n_steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(GROUPS), repeat=n_steps)))


def run_with(network: nn.Module, flow: ChannelFlow, images: Tensor, actions: Tensor) -> MaskedRun:
    run = MaskedRun(network, flow, images)
    while run.observe() is not None:
        run.act(actions[:, len(run.actions)])
    return run


def by_hand(network: nn.Module, images: Tensor, actions: Tensor) -> Tensor:
    """An image at a time: what a conv computes beyond its prefix is zero after norm and ReLU."""
    prefixes = {"conv2": (2, 4, 6), "conv3": (3, 5, 7)}
    logits = []
    for image, chosen in zip(images, actions.tolist(), strict=True):
        values = image[None]
        left = iter(chosen)
        conv = ""
        for name, module in network.named_children():
            conv = name if isinstance(module, nn.Conv2d) else conv
            values = module(values)
            if isinstance(module, nn.ReLU) and conv in prefixes:
                values[:, prefixes[conv][next(left)] :] = 0
                conv = ""
        logits.append(values)
    return torch.cat(logits)


@torch.no_grad()
def test_a_run_is_the_masked_forward_written_by_hand() -> None:
    network = three_convs()
    assert [name for name, module in network.named_children() if isinstance(module, nn.Conv2d)] == [
        "conv1",
        "conv2",
        "conv3",
    ]
    flow = channel_flow(network, GROUPS)
    actions = all_actions(2)
    batch = images(len(actions))
    logits = run_with(network, flow, batch, actions).logits
    torch.testing.assert_close(logits, by_hand(network, batch, actions))


@torch.no_grad()
def test_a_block_whose_first_conv_is_cut_is_the_masked_forward_written_by_hand() -> None:
    network = tiny.network("residual").eval()
    assert isinstance(network, tiny.Residual)
    flow = channel_flow(network, GROUPS)
    actions = torch.tensor([[0], [1], [2], [1], [0], [2]])
    outer = network.stem(images()).relu()
    inner = network.norm1(network.conv1(outer)).relu()
    for image, (action,) in enumerate(actions.tolist()):
        inner[image, (3, 6, 8)[action] :] = 0
    expected = network.classifier((outer + network.conv2(inner)).relu().mean(dim=(2, 3)))
    torch.testing.assert_close(run_with(network, flow, images(), actions).logits, expected)


@pytest.mark.parametrize("make", [three_convs, lambda: tiny.network("residual").eval(), Adds])
@torch.no_grad()
def test_with_all_groups_it_is_the_dense_network(make: type[nn.Module]) -> None:
    network = make()
    flow = channel_flow(network, GROUPS)
    actions = torch.full((6, len(flow.convs)), GROUPS - 1)
    torch.testing.assert_close(
        run_with(network, flow, images(), actions).logits, network(images()), rtol=0, atol=0
    )


@torch.no_grad()
def test_every_image_of_a_batch_has_its_own_prefixes() -> None:
    """Not one mask for the batch, left over from its last image."""
    network = three_convs()
    flow = channel_flow(network, GROUPS)
    actions = all_actions(2)
    batch = images(len(actions))
    logits = run_with(network, flow, batch, actions).logits
    for image in range(len(actions)):
        chosen = slice(image, image + 1)
        alone = run_with(network, flow, batch[chosen], actions[chosen]).logits
        torch.testing.assert_close(logits[chosen], alone)


@torch.no_grad()
def test_what_is_observed_is_the_pooled_input_of_the_conv_decided_about() -> None:
    network = three_convs()
    flow = channel_flow(network, GROUPS)
    inputs: list[Tensor] = []
    for conv in flow.convs:
        module = network.get_submodule(conv.name)
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    run = MaskedRun(network, flow, images())
    observed = []
    while (features := run.observe()) is not None:
        observed.append(features)
        run.act(torch.tensor([0, 1, 2, 2, 1, 0]))
    for features, values in zip(observed, inputs, strict=True):
        torch.testing.assert_close(features, values.mean(dim=(2, 3)))
    assert (observed[1][0, 2:] == 0).all()  # the conv before computed two channels of six
    assert (observed[1][2, 2:] != 0).any()


@torch.no_grad()
def test_to_observe_twice_changes_nothing() -> None:
    run = MaskedRun(three_convs(), channel_flow(three_convs(), GROUPS), images())
    first = run.observe()
    assert first is not None
    assert first is run.observe()


@pytest.mark.parametrize("make", [three_convs, Adds, AddsToAnAlias])
@torch.no_grad()
def test_forks_end_as_if_each_had_run_alone(make: type[nn.Module]) -> None:
    network = make()
    flow = channel_flow(network, GROUPS)
    ended: list[MaskedRun] = []

    def fork(run: MaskedRun) -> None:
        if run.observe() is None:
            ended.append(run)
            return
        for action in range(GROUPS):
            forked = run.fork()
            forked.act(torch.full((6,), action))
            fork(forked)

    fork(MaskedRun(network, flow, images()))
    combinations = all_actions(len(flow.convs))
    assert len(ended) == len(combinations)
    for run, combination in zip(ended, combinations, strict=True):
        assert torch.equal(torch.stack(run.actions, dim=1)[0], combination)
        alone = run_with(network, flow, images(), combination.expand(6, -1))
        torch.testing.assert_close(run.logits, alone.logits, rtol=0, atol=0)


@torch.no_grad()
def test_forks_do_not_compute_again_what_they_share() -> None:
    network = three_convs()
    calls: dict[str, int] = {}
    for name, module in network.named_children():
        module.register_forward_hook(
            lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
        )
    run = MaskedRun(network, channel_flow(network, GROUPS), images())
    run.observe()
    for action in range(GROUPS):
        forked = run.fork()
        forked.act(torch.full((6,), action))
        forked.observe()
    assert (calls["conv1"], calls["conv2"], calls["conv3"]) == (1, 1, GROUPS)


def test_gradients_reach_the_weights_of_the_channels_that_were_computed_alone() -> None:
    network = three_convs()
    run = run_with(network, channel_flow(network, GROUPS), images(), torch.tensor([[0, 2]] * 6))
    run.logits.square().sum().backward()
    gradient = network.get_parameter("conv2.weight").grad
    assert gradient is not None
    assert (gradient[:2] != 0).any()
    assert (gradient[2:] == 0).all()
    stem = network.get_parameter("conv1.weight").grad
    assert stem is not None and (stem != 0).any()


def test_the_network_is_left_as_it_was() -> None:
    network = three_convs()
    before = copy.deepcopy(network.state_dict())
    run_with(network, channel_flow(network, GROUPS), images(), torch.tensor([[0, 2]] * 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_nothing_can_be_decided_before_it_was_observed() -> None:
    run = MaskedRun(three_convs(), channel_flow(three_convs(), GROUPS), images())
    with pytest.raises(AssertionError, match="observe"):
        run.act(torch.zeros(6, dtype=torch.int64))
    run.observe()
    run.act(torch.zeros(6, dtype=torch.int64))
    with pytest.raises(AssertionError, match="observe"):
        run.act(torch.zeros(6, dtype=torch.int64))


def test_there_are_no_logits_before_all_is_decided() -> None:
    run = MaskedRun(three_convs(), channel_flow(three_convs(), GROUPS), images())
    run.observe()
    with pytest.raises(AssertionError, match="decisions"):
        _ = run.logits


def test_a_mask_keeps_each_images_prefix() -> None:
    mask = prefix_mask((1, 3), torch.tensor([1, 0, 1]), torch.bfloat16)
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert mask.dtype == torch.bfloat16


class WritesIntoImages(Adds):
    """The very first operation is in place."""

    def forward(self, images: Tensor) -> Tensor:
        images.mul_(2.0)
        return super().forward(images)


def test_a_fork_made_before_anything_ran_does_not_see_what_is_written() -> None:
    network = WritesIntoImages()
    run = MaskedRun(network, channel_flow(network, GROUPS), images())
    forked = run.fork()
    first, later = run.observe(), forked.observe()
    assert first is not None and later is not None
    assert torch.equal(first, later)
