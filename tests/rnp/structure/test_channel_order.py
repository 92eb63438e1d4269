"""Channels in order of importance: the same network, its best channels first."""

import copy

import pytest
import tiny
import torch
from torch import nn

from rnp.structure.channel_flow import channel_flow
from rnp.structure.channel_order import importance, order_channels
from testbed.backbones import BACKBONES, build_backbone


def lively(network: nn.Module) -> nn.Module:
    """Gives every batch norm weights and statistics of its own, as training does."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_network_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    dense = lively(build_backbone(name, (3, 32, 32), 10))
    ordered = copy.deepcopy(dense)
    flow = channel_flow(ordered, 4)
    order_channels(ordered, flow)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = dense(images)
        difference = (ordered(images) - expected).abs().max()
    assert difference < 1e-4 * expected.abs().max()
    conv = flow.convs[-1].name
    assert not torch.equal(ordered.get_submodule(conv).weight, dense.get_submodule(conv).weight)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_the_most_important_channels_come_first(kind: str) -> None:
    network = lively(tiny.network(kind))
    flow = channel_flow(network, 4)
    before = [importance(network, conv) for conv in flow.convs]
    order_channels(network, flow)
    for conv, old in zip(flow.convs, before, strict=True):
        new = importance(network, conv)
        assert torch.equal(new, old.sort(descending=True).values)


def test_importance_is_the_filter_s_l1_norm_as_batch_norm_scales_it() -> None:
    network = tiny.network("residual").eval()
    flow = channel_flow(network, 4)
    norm = network.norm1
    norm.weight.data.copy_(torch.arange(8) - 3.5)
    norm.running_var.copy_(torch.arange(1.0, 9))
    expected = [
        network.conv1.weight[c].abs().sum().item() * abs(c - 3.5) / (c + 1 + norm.eps) ** 0.5
        for c in range(8)
    ]
    got = importance(network, flow.convs[0])
    torch.testing.assert_close(got, torch.tensor(expected))
