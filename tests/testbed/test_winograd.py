"""Winograd convolutions: what they give, and what they multiply."""

import itertools

import pytest
import torch
from small_networks import Net, conv, pooled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from testbed.cost import count_multiplications, count_parameters
from testbed.special_costs import special_costs
from testbed.winograd import WinogradConv2d, takes_winograd, transformed, winograd_share

SHAPES = [(8, 8, 1), (7, 5, 1), (6, 9, 0), (4, 4, (2, 0)), (3, 3, 0)]


def images(height: int, width: int, channels: int = 3, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, height, width, generator=generator)


@pytest.mark.parametrize(("height", "width", "padding"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_what_the_direct_convolution_gives(
    height: int, width: int, padding: int | tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(1)
    direct = nn.Conv2d(3, 5, 3, padding=padding, bias=bias)
    x = images(height, width)
    torch.testing.assert_close(WinogradConv2d(direct)(x), direct(x), rtol=1e-5, atol=1e-5)


def test_weights_are_transformed_by_the_papers_matrix() -> None:
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transformed(weight), g @ weight @ g.T)


@pytest.mark.parametrize(("place", "zeros"), [((0, 0), 7), ((0, 1), 10), ((1, 1), 12)])
def test_a_single_weight_makes_nine_six_or_four(place: tuple[int, int], zeros: int) -> None:
    weight = torch.zeros(3, 3)
    weight[place] = 1.0
    assert int((transformed(weight) == 0).sum()) == zeros


def by_hand(layer: WinogradConv2d, x: Tensor) -> tuple[Tensor, int]:
    """Tile by tile, and only with the weights that are not zero: the output, and the products."""
    b = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    a = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
    n, _, height, width = x.shape  # of padding 1
    rows, columns = -(-height // 2), -(-width // 2)
    padded = nn.functional.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
    outputs, products = torch.zeros(n, len(layer.weight), 2 * rows, 2 * columns), 0
    for image, row, column in itertools.product(range(n), range(rows), range(columns)):
        tile = padded[image, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
        data = b @ tile @ b.T
        for output in range(len(layer.weight)):
            cells = torch.zeros(4, 4)
            for place in layer.weight[output].nonzero().tolist():
                channel, r, c = place
                cells[r, c] += layer.weight[output, channel, r, c] * data[channel, r, c]
                products += 1
            part = a @ cells @ a.T
            outputs[image, output, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = part
    return outputs[:, :, :height, :width], products


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3)])
@torch.no_grad()
def test_its_cost_is_that_of_a_convolution_that_skips_zeros(height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = WinogradConv2d(nn.Conv2d(3, 2, 3, padding=1, bias=False))
    layer.weight[torch.rand(layer.weight.shape) < 0.6] = 0
    x = images(height, width)
    outputs, products = by_hand(layer, x)
    torch.testing.assert_close(layer(x), outputs, rtol=1e-5, atol=1e-5)
    cost = count_multiplications(layer, x)
    assert cost.multiplications == 9 * 3 * 2 * height * width, "as the direct one"
    assert special_costs(layer, cost, x)["winograd_multiplications"] * 2 == pytest.approx(products)


def test_with_no_zero_it_runs_what_its_cost_says() -> None:
    layer, x = WinogradConv2d(conv(3, 5)), images(7, 6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    ran = counter.get_total_flops() / 2 / len(x)
    assert ran == 16 * 3 * 5 * 4 * 3
    cost = count_multiplications(layer, x)
    assert special_costs(layer, cost, x)["winograd_multiplications"] == pytest.approx(ran)
    assert winograd_share(layer.weight, 8, 8) == pytest.approx(4 / 9)


def test_a_network_counts_every_layer_that_could_run_so() -> None:
    network = Net(
        lambda net, x: net.head(pooled(net.strided(net.first(x).relu()))),
        first=conv(3, 4),
        strided=conv(4, 6, stride=2),
        head=nn.Linear(6, 2),
    )
    with torch.no_grad():
        network.strided.weight[:3] = 0
    x = images(8, 8)
    cost = count_multiplications(network, x)
    found = special_costs(network, cost, x)["winograd_multiplications"]
    assert found == pytest.approx(16 * 3 * 4 * 16 + 9 * 4 * 6 * 16 / 2 + 6 * 2)
    network.set_submodule("first", WinogradConv2d(network.first))
    again = count_multiplications(network, x)
    assert again.multiplications == cost.multiplications
    assert special_costs(network, again, x)["winograd_multiplications"] == pytest.approx(found)
    assert count_parameters(network) == 16 * 12 + 4 + 216 + 6 + 14


def test_only_plain_convs_take_it() -> None:
    refused = [
        nn.Conv2d(4, 4, 1), conv(4, 4, stride=2), conv(4, 4, groups=2), nn.Linear(4, 4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv1d(4, 4, 3),
    ]  # fmt: skip
    assert takes_winograd(conv(4, 4)) and not any(map(takes_winograd, refused))
    with pytest.raises(ValueError, match="Expected a 3x3 conv of stride 1"):
        WinogradConv2d(nn.Conv2d(4, 4, 1))
