"""Which convs can be pruned at run time, and who reads them."""

import copy
import pickle
from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from baselines.channels.channel_groups import channel_groups
from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import channel_flow
from testbed.backbones import build_backbone

BACKBONES = {
    "conv": {"channels": (8, 12, 8), "pool_after": (2, 3), "dropout": 0.1},
    "lfw3_net": {"width": 0.25},
    "m_cifarnet": {"width": 0.125},
    "vgg16": {"width": 0.125},
    "resnet18": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "resnet56": {"width": 0.25},
}


class Made(nn.Module):
    """Layers, and a forward that takes them in its first argument."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_convs_found_are_those_that_the_dependency_graph_finds_but_for_the_first(
    name: str,
) -> None:
    model = build_backbone(name, (3, 32, 32), 10, **BACKBONES[name])
    found = {c.name: (c.channels, dict(c.readers)) for c in channel_flow(model, 4).convs}
    first = next(n for n, module in model.named_modules() if isinstance(module, nn.Conv2d))
    expected = {
        name: (group.channels, {r: len(group.inputs_by_channel(r)[0]) for r in group.readers})
        for name, group in channel_groups(model, torch.zeros(1, 3, 32, 32)).items()
        if name != first
    }
    assert found == expected


def test_a_chain_is_pruned_from_its_second_conv_to_its_linear_layer() -> None:
    flow = channel_flow(tiny.network(), 4)
    (pruned,) = flow.convs
    assert pruned.name == "conv2"
    assert pruned.prefixes == (2, 4, 6, 8)
    assert pruned.norm == "norm2"
    assert dict(pruned.readers) == {"hidden": 16}  # of 4 x 4 positions
    assert flow.step_of == {"conv2": 0}
    assert flow.step_read_by == {"hidden": 0}


FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.size(0), -1),
    "view of a tuple": lambda x: x.view((x.shape[0], -1)),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "torch.reshape": lambda x: torch.reshape(x, (x.size(0), -1)),
}


@pytest.mark.parametrize("way", FLATTENED)
def test_flattening_all_but_the_batch_is_followed_however_it_is_said(way: str) -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        return net.c(FLATTENED[way](net.b(net.a(x))))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=nn.Linear(8 * 16, 3))
    (pruned,) = channel_flow(model, 2).convs
    assert (pruned.name, dict(pruned.readers)) == ("b", {"c": 16})


MINGLED: dict[str, Callable[[Tensor], Tensor]] = {
    "positions apart": lambda x: x.view(-1, 8 * 16),
    "channels asked for": lambda x: x.view(x.size(0), x.size(1) * 16),
    "images side by side": lambda x: x.view(x.size(0) // 2, -1),
}


@pytest.mark.parametrize("way", MINGLED)
def test_another_view_of_the_channels_is_refused(way: str) -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        return net.c(MINGLED[way](net.b(net.a(x))))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=nn.Linear(8 * 16, 3))
    with pytest.raises(ValueError, match=r"'(view|size)'"):
        channel_flow(model, 2)


def test_of_a_residual_block_only_the_first_conv_is_pruned() -> None:
    (pruned,) = channel_flow(tiny.network("residual"), 4).convs
    assert (pruned.name, pruned.norm, dict(pruned.readers)) == ("conv1", "norm1", {"conv2": 1})


def test_functions_and_methods_are_followed_like_modules() -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        x = F.relu(net.a(x))
        x = F.max_pool2d(net.b(x).relu(), 2)
        x = torch.sigmoid(F.dropout(net.c(x), 0.5, net.training))
        return net.d(torch.flatten(x.contiguous(), start_dim=1))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=conv(8, 4), d=nn.Linear(64, 3))
    readers = {c.name: dict(c.readers) for c in channel_flow(model, 2).convs}
    assert readers == {"b": {"c": 1}, "c": {"d": 16}}


def test_operations_that_take_a_conv_twice_are_followed() -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        x = net.b(net.a(x))
        x = net.c(x * F.relu6(x + 3) / 6)  # hard swish, written out
        return net.d(F.interpolate(x, size=x.shape[2:]).flatten(2).mean(-1))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=conv(8, 4), d=nn.Linear(4, 3))
    readers = {c.name: dict(c.readers) for c in channel_flow(model, 2).convs}
    assert readers == {"b": {"c": 1}, "c": {"d": 1}}
    network = RuntimeNetwork(model, 2).eval()
    images, actions = torch.randn(8, 2, 8, 8), torch.randint(2, (8, 2))
    with torch.no_grad():
        expected = network.masked(images, actions)
    torch.testing.assert_close(network.skipping(images, actions), expected)


def test_a_conv_may_have_several_readers() -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        x = net.b(net.a(x))
        return (net.c(x.relu()) + net.d(F.avg_pool2d(x, 3, 1, 1))).mean(dim=(-2, -1))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=conv(8, 3), d=conv(8, 3))
    (pruned,) = channel_flow(model, 2).convs
    assert (pruned.name, dict(pruned.readers)) == ("b", {"c": 1, "d": 1})
    assert pruned.norm is None


@pytest.mark.parametrize(
    ("reason", "forward", "layers"),
    [
        (
            "b: it is a grouped conv of 2 groups",
            lambda net, x: net.c(net.b(net.a(x))),
            {"a": conv(2, 4), "b": conv(4, 4, groups=2), "c": conv(4, 3)},
        ),
        (
            "b: the grouped conv 'c' reads it",
            lambda net, x: net.c(net.b(net.a(x))),
            {"a": conv(2, 4), "b": conv(4, 4), "c": conv(4, 4, groups=4)},
        ),
        (
            "b: it runs 2 times",
            lambda net, x: net.c(net.b(net.b(net.a(x)))),
            {"a": conv(2, 4), "b": conv(4, 4), "c": conv(4, 3)},
        ),
        (
            "b: 'c', which reads it, runs more than once",
            lambda net, x: net.c(net.b(net.a(x))) + net.c(x),
            {"a": conv(2, 2), "b": conv(2, 2), "c": conv(2, 3)},
        ),
        (
            "b: it has only one channel",
            lambda net, x: net.c(net.b(net.a(x))),
            {"a": conv(2, 4), "b": conv(4, 1), "c": conv(1, 3)},
        ),
        (
            "b: 'a sum' takes several",
            lambda net, x: net.c(net.b(net.a(x)) + net.d(x)),
            {"a": conv(2, 4), "b": conv(4, 4), "c": conv(4, 3), "d": conv(2, 4)},
        ),
        (
            "b: 'norm' takes several",
            lambda net, x: net.c(net.norm(net.b(net.a(x)))),
            {"a": conv(2, 4), "b": conv(4, 4), "c": conv(4, 3), "norm": nn.GroupNorm(2, 4)},
        ),
        (
            "b: 'norm' normalises by the statistics of each batch",
            lambda net, x: net.c(net.norm(net.b(net.a(x)))),
            {
                "a": conv(2, 4),
                "b": conv(4, 4),
                "c": conv(4, 3),
                "norm": nn.BatchNorm2d(4, track_running_stats=False),
            },
        ),
        (
            'b: "the network\'s output" takes several',
            lambda net, x: net.b(net.a(x)),
            {"a": conv(2, 4), "b": conv(4, 3)},
        ),
        (
            "b: the linear layer 'c' does not read its flattened channels",
            lambda net, x: net.c(net.b(net.a(x))),
            {"a": conv(2, 4), "b": conv(4, 4), "c": nn.Linear(8, 3)},
        ),
        (
            "b: 'flatten' takes several",
            lambda net, x: net.c(torch.flatten(net.b(net.a(x)), end_dim=1)),
            {"a": conv(2, 4), "b": conv(4, 4), "c": nn.Linear(8, 3)},
        ),
        (
            "b: it is a ParametrizedConv2d, not a plain conv",
            lambda net, x: net.c(net.b(net.a(x))),
            {
                "a": conv(2, 4),
                "b": nn.utils.parametrizations.weight_norm(conv(4, 4)),
                "c": conv(4, 3),
            },
        ),
    ],
)
def test_what_cannot_be_pruned_is_left_alone_and_nothing_at_all_is_an_error_that_says_why(
    reason: str, forward: Callable[..., Tensor], layers: dict[str, nn.Module]
) -> None:
    with pytest.raises(ValueError, match="No conv of this network can run") as caught:
        channel_flow(Made(forward, **layers), 4)
    assert reason in str(caught.value)
    assert "a: it is the first conv, which sees the image itself" in str(caught.value)


def test_a_network_without_convs_is_an_error() -> None:
    with pytest.raises(ValueError, match="it has no conv"):
        channel_flow(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), 4)


def test_a_forward_that_depends_on_values_is_an_error() -> None:
    def forward(net: Made, x: Tensor) -> Tensor:
        return net.b(net.a(x)) if x.sum() > 0 else net.a(x)

    with pytest.raises(ValueError, match=r"must not depend on the values"):
        channel_flow(Made(forward, a=conv(2, 4), b=conv(4, 4)), 4)


def test_a_network_that_takes_more_than_images_is_an_error() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(2, 4), conv(4, 4), conv(4, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.c(self.b(self.a(x))) * scale

    with pytest.raises(ValueError, match=r"\['x', 'scale'\]"):
        channel_flow(Two(), 4)


class SometimesSkipped(nn.Module):
    """What stochastic depth does: branches are left out at random, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(2, 6), conv(6, 8), conv(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        branch = self.c(self.b(x).relu())
        if self.training:
            branch = branch * torch.bernoulli(torch.full((1,), 0.5))
        return self.d((x + branch).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_a_trace_is_of_evaluation_whatever_the_mode(training: bool) -> None:
    model = SometimesSkipped().train(training)
    network = RuntimeNetwork(model, 4).eval()
    images, whole = torch.randn(3, 2, 8, 8), torch.full((3, 1), 3)
    expected = model.eval()(images)
    for _ in range(5):
        torch.testing.assert_close(network.skipping(images, whole), expected)
        torch.testing.assert_close(network.masked(images, whole), expected)


def test_a_fresh_network_and_one_that_was_evaluated_are_traced_alike() -> None:
    for make in (SometimesSkipped, tiny.network):
        graphs = {str(channel_flow(make().train(mode), 4).graph) for mode in (True, False)}
        assert len(graphs) == 1


def test_modes_stay_as_they_are() -> None:
    model = tiny.network().train()
    model.get_submodule("norm2").eval()  # frozen
    before = {name: module.training for name, module in model.named_modules()}
    channel_flow(model, 4)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(type(mode) is bool for mode in before.values())


@pytest.mark.parametrize("own_mode", [True, False])
def test_a_function_that_is_told_the_mode_is_told_that_of_the_run(own_mode: bool) -> None:
    """And where its mode is a constant, it keeps that."""

    def forward(net: Made, x: Tensor) -> Tensor:
        x = F.dropout(net.b(net.a(x)), 0.5, net.training if own_mode else False)
        return net.c(x).mean((2, 3))

    model = Made(forward, a=conv(2, 6), b=conv(6, 8), c=conv(8, 3))
    network = pickle.loads(pickle.dumps(RuntimeNetwork(copy.deepcopy(model), 2)))
    images, whole = torch.randn(4, 2, 8, 8), torch.ones(4, 1, dtype=torch.int64)
    network.train()
    assert torch.equal(network.masked(images, whole), network.masked(images, whole)) != own_mode
    network.eval()
    torch.testing.assert_close(network.masked(images, whole), model.eval()(images))


def test_the_network_stays_as_it_is() -> None:
    model = tiny.network()
    before = copy.deepcopy(model.state_dict())
    channel_flow(model, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "flow" not in vars(model)


def test_a_deep_network_is_copied_and_pickled() -> None:
    flow = channel_flow(build_backbone("resnet56", (3, 8, 8), 3, width=0.25), 4)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert other.convs == flow.convs
        assert str(other.graph) == str(flow.graph)
