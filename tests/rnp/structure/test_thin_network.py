"""Networks of fewer channels, made by running them."""

import copy

import pytest
import tiny
import torch
from small_networks import Net, backbone, conv, pooled
from torch import Tensor, nn

from rnp.structure.thin_network import size_of, thin_network
from testbed.cost import multiplications_by_layer
from testbed.model_zoo import build

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("name", ["conv", "resnet20", "resnet18", "m_cifarnet", "vgg16"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_every_layer_keeps_the_share_of_its_channels(name: str, share: float) -> None:
    model = backbone(name)
    before = copy.deepcopy(model.state_dict())
    thin = thin_network(model, share, IMAGE)
    convs = [
        (whole, part)
        for whole, part in zip(model.modules(), thin.modules(), strict=True)
        if isinstance(whole, nn.Conv2d)
    ]
    assert convs[0][1].in_channels == 3
    for whole, part in convs:
        assert part.out_channels == len(part.weight) == size_of(share, whole.out_channels)
    assert thin(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    if share == 1.0:
        shapes = [tuple(p.shape) for p in model.parameters()]
        assert shapes == [tuple(p.shape) for p in thin.parameters()]


def test_a_chain_costs_the_square_of_the_share_behind_its_first_conv() -> None:
    model = Net(
        lambda net, x: net.out(pooled(net.second(net.first(x)))),
        first=conv(3, 10), second=conv(10, 20), out=nn.Linear(20, 5),
    )  # fmt: skip
    whole, half = (
        multiplications_by_layer(each, IMAGE) for each in (model, thin_network(model, 0.5, IMAGE))
    )
    assert half == {"first": whole["first"] // 2, "second": whole["second"] // 4, "out": 50}


def test_depthwise_convs_keep_as_many_channels_as_they_read() -> None:
    network = build("torchvision:mobilenet_v3_small", (3, 64, 64), 5, {})
    thin = thin_network(network, 0.4, torch.zeros(1, 3, 64, 64))
    for module in thin.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert module.groups == module.in_channels == module.out_channels
    assert thin.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def grouped(net: Net, x: Tensor) -> Tensor:
    result: Tensor = net.out(pooled(net.second(net.first(x))))
    return result


@pytest.mark.parametrize(
    ("forward", "layers", "reason"),
    [
        (grouped, {"first": conv(3, 8), "second": conv(8, 8, groups=2)}, "a conv of 2 groups"),
        (
            lambda net, x: net.out(net.first(x).mean(dim=(2, 3)).view(-1, 8)),
            {"first": conv(3, 8)},
            "8",
        ),
    ],
)
def test_what_cannot_run_with_fewer_channels_is_refused_with_the_reason(
    forward: object, layers: dict[str, nn.Module], reason: str
) -> None:
    model = Net(forward, **layers, out=nn.Linear(8, 5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Cannot make Net with 0\.5 of its channels") as error:
        thin_network(model, 0.5, IMAGE)
    assert reason in str(error.value)


def test_a_network_that_does_not_end_in_its_classifier_is_refused() -> None:
    ends_in_conv = Net(lambda net, x: pooled(net.out(x)), out=conv(3, 5))
    with pytest.raises(ValueError, match="ends in a linear layer, its classifier; Net has none"):
        thin_network(ends_in_conv, 0.5, IMAGE)
    goes_on = Net(lambda net, x: net.out(pooled(x)).softmax(dim=1), out=nn.Linear(3, 5))
    with pytest.raises(ValueError, match="returns what its last linear layer 'out' gives"):
        thin_network(goes_on, 0.5, IMAGE)


def test_no_layer_ends_without_a_channel() -> None:
    assert [size_of(share, 6) for share in (0.01, 0.25, 0.5, 1.0)] == [1, 2, 3, 6]
    assert thin_network(tiny.network("conv"), 0.01, torch.zeros(1, 2, 8, 8)).conv2.out_channels == 1
