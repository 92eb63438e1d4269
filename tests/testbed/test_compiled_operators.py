"""Compiled operators: convs on some of their channels, and gates, as torch computes them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from testbed import compiled

pytestmark = pytest.mark.skipif(compiled.operators() is None, reason="they are not built")

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x3, stride 3, dilated, unpadded": {"kernel_size": 3, "stride": 3, "dilation": 2},
    "5x5, stride 2": {"kernel_size": 5, "stride": 2, "padding": 2},
    "1x1": {"kernel_size": 1},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2},
    "2x3, stride 2 and 1": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0)},
    "3x3, dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
}


def convolved(conv: nn.Conv2d, images: Tensor, inputs: Tensor, outputs: Tensor, *more: Any) -> Any:
    positions = conv.weight.flatten(2).permute(2, 0, 1).contiguous()
    return compiled.operators().conv_on(
        *(images, inputs, outputs, positions, conv.bias, *more),
        *(conv.kernel_size, conv.stride, conv.padding, conv.dilation),
    )


@torch.no_grad()
@pytest.mark.parametrize("n_inputs", [0, 1, 3, 5])
@pytest.mark.parametrize("name", CONVS)
def test_conv_on_some_channels_is_the_masked_conv(name: str, n_inputs: int) -> None:
    torch.manual_seed(n_inputs)
    conv, images = nn.Conv2d(5, 7, **CONVS[name]), torch.randn(2, 5, 13, 12)
    inputs, outputs = torch.randperm(5)[:n_inputs].sort().values, torch.tensor([1, 2, 6])
    scale, shift = torch.rand(3), torch.randn(7)
    read = torch.zeros(5).index_fill(0, inputs, 1)
    options = conv.bias, conv.stride, conv.padding, conv.dilation
    maps = F.conv2d(images * read[:, None, None], conv.weight, *options)
    expected = torch.zeros_like(maps)
    expected[:, outputs] = maps[:, outputs] * scale[:, None, None] + shift[outputs, None, None]
    found = convolved(conv, images, inputs, outputs, scale, shift)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_conv_on_some_channels_counts_what_it_multiplies() -> None:
    conv, images = nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.randn(2, 5, 8, 6)
    inputs, outputs = torch.tensor([0, 3]), torch.tensor([1, 2, 6])
    with FlopCounterMode(display=False) as counter:
        convolved(conv, images, inputs, outputs, None, None)
    multiplications = 2 * (4 * 3) * 2 * 3 * 9  # images, positions, inputs, outputs, kernel
    assert counter.get_total_flops() == 2 * multiplications


@torch.no_grad()
@pytest.mark.parametrize("strictly_above", [False, True])
@pytest.mark.parametrize("most", [1, 4, 9])
def test_gate_takes_the_largest_and_none_that_is_shut(most: int, strictly_above: bool) -> None:
    torch.manual_seed(most)
    image, phi, rho = torch.randn(1, 6, 5, 5), torch.randn(9, 6), torch.randn(9)
    image[0, [1, 4]] = 0
    outputs, scale, inputs = compiled.operators().gate(image, phi, rho, most, strictly_above)
    gates = F.linear(image.abs().mean(dim=(2, 3)), phi, rho).relu()[0]
    largest = gates.topk(most).indices
    assert outputs.tolist() == sorted(place for place in largest.tolist() if gates[place] > 0)
    torch.testing.assert_close(scale, gates[outputs])
    assert inputs.tolist() == [0, 2, 3, 5]


def test_of_equal_gates_none_is_strictly_above() -> None:
    image, phi, rho = torch.ones(1, 2, 3, 3), torch.zeros(4, 2), torch.tensor([1.0, 2, 1, 1])
    outputs, _, _ = compiled.operators().gate(image, phi, rho, 2, True)
    assert outputs.tolist() == [1]


@torch.no_grad()
@pytest.mark.parametrize("margin", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_averaged_log_probabilities_and_how_sure_they_are(
    margin: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    logits, earlier = (3 * torch.randn(2, 6, 10)).to(dtype).unbind()
    before = earlier.float().log_softmax(dim=1)
    answers, confidences = compiled.operators().answer(before, logits, 0.3, margin)
    expected = torch.lerp(before, logits.float().log_softmax(dim=1), 0.3).log_softmax(dim=1)
    torch.testing.assert_close(answers, expected, rtol=1e-5, atol=1e-5)
    first, second = expected.exp().topk(2, dim=1).values.unbind(dim=1)
    torch.testing.assert_close(confidences, first - margin * second, rtol=1e-5, atol=1e-6)
    first_answers, _ = compiled.operators().answer(None, logits, 1.0, margin)
    own = logits.float().log_softmax(dim=1)
    torch.testing.assert_close(first_answers, own, rtol=1e-5, atol=1e-5)
