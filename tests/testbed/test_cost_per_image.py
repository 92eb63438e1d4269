"""Costs of networks that decide for each image, and of zeros, counted by hand."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from test_cost import IMAGES, Network, per_layer
from torch import Tensor, nn
from torch.nn import functional

from testbed.backbones import build_backbone
from testbed.cost import (
    count_multiplications,
    count_parameters,
    nonzero_weights,
    sparsity,
)

BRIGHT = IMAGES.sign().abs() * torch.tensor([1.0, -1, 1, 1, -1])[:, None, None, None]
IS_BRIGHT = [1, 0, 1, 1, 0]


class SkippingNetwork(nn.Module):
    """Runs its second conv on those images only whose mean is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Conv2d(4, 4, 1, bias=False)
        self.sometimes = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.always(images).clone()
        chosen = images.mean(dim=(1, 2, 3)) > 0
        if chosen.any():
            features[chosen] = self.sometimes(features[chosen])
        return features


class MaskingNetwork(SkippingNetwork):
    """Gives the same outputs, but computes all and multiplies by a mask."""

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.always(images)
        chosen = (images.mean(dim=(1, 2, 3)) > 0).to(images.dtype)[:, None, None, None]
        return chosen * self.sometimes(features) + (1 - chosen) * features


def test_skipped_work_is_counted_for_each_image() -> None:
    always, sometimes = 4 * 4 * 8 * 6, 9 * 4 * 4 * 8 * 6
    network = SkippingNetwork()
    counted = per_layer(network, BRIGHT)
    assert counted == {"always": [always] * 5, "sometimes": [sometimes * b for b in IS_BRIGHT]}
    cost = count_multiplications(network, BRIGHT, batch_size=2)
    assert cost.multiplications == always + sometimes * 3 / 5
    assert cost.nonzero_multiplications == cost.multiplications


class SliceBySlice:
    """A tensor that may only be read a few images at a time."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, places: slice) -> Tensor:
        part = self.inputs[places]
        assert len(part) <= 2
        return part


@pytest.mark.parametrize("network", [SkippingNetwork(), MaskingNetwork()])
def test_images_may_be_computed_slice_by_slice(network: nn.Module) -> None:
    whole = count_multiplications(network, BRIGHT)
    in_slices = count_multiplications(network, SliceBySlice(BRIGHT), batch_size=2)
    assert torch.equal(in_slices.per_image, whole.per_image)
    assert in_slices.decides_per_image == whole.decides_per_image


def test_a_network_that_decides_the_same_for_all_images_decides_per_image_all_the_same() -> None:
    alike = count_multiplications(SkippingNetwork(), BRIGHT.abs())
    assert alike.per_image.unique().numel() == 1 and alike.decides_per_image
    assert count_multiplications(SkippingNetwork(), BRIGHT).decides_per_image
    assert not count_multiplications(MaskingNetwork(), BRIGHT).decides_per_image


def test_a_mask_multiplied_by_zero_earns_nothing() -> None:
    network = MaskingNetwork()
    torch.testing.assert_close(network(BRIGHT), _with_weights_of(network)(BRIGHT))
    assert per_layer(network, BRIGHT) == {
        "always": [4 * 4 * 8 * 6] * 5,
        "sometimes": [9 * 4 * 4 * 8 * 6] * 5,
    }


def _with_weights_of(network: nn.Module) -> SkippingNetwork:
    skipping = SkippingNetwork()
    skipping.load_state_dict(network.state_dict())
    return skipping


def test_one_image_in_a_thousand_that_costs_less_is_found() -> None:
    images = torch.ones(1000, 4, 2, 2)
    images[617] = -1
    counted = count_multiplications(SkippingNetwork(), images).per_image
    assert counted.unique(return_counts=True)[1].tolist() == [1, 999]
    assert counted.argmin() == 617


DECISIONS: dict[str, Callable[[Tensor], bool]] = {
    "item": lambda images: images.mean().item() > 0,
    "tolist": lambda images: sum(images.flatten().tolist()) > 0,
    "numpy": lambda images: bool(images.numpy().mean() > 0),
    "a guess where it cannot look": lambda images: guessed_mean(images) > 0,
}


def guessed_mean(images: Tensor) -> float:
    try:
        return images.mean().item()
    except RuntimeError:
        return 1.0


@pytest.mark.parametrize("way", DECISIONS)
def test_decisions_taken_outside_of_torch_are_found(way: str) -> None:
    def decide(net: Any, images: Tensor) -> Tensor:
        rows = images.split(1)
        return torch.cat([net.conv(row) if DECISIONS[way](row) else row for row in rows])

    network = Network(decide, conv=nn.Conv2d(4, 4, 1))
    assert per_layer(network, BRIGHT) == {"conv": [192 * 4 * bright for bright in IS_BRIGHT]}


def test_a_network_that_decides_for_a_whole_batch_is_refused() -> None:
    def by_the_last_image(net: Any, images: Tensor) -> Tensor:
        convolved: Tensor = net.conv(images) if images[-1].mean() > 0 else images
        return convolved

    network = Network(by_the_last_image, conv=nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="decide for each image"):
        count_multiplications(network, BRIGHT)


def test_a_network_that_skips_only_when_an_image_is_alone_is_refused() -> None:
    def cheap_alone(net: Any, images: Tensor) -> Tensor:
        convolved: Tensor = net.conv(images) if len(images) > 1 else images
        return convolved

    network = Network(cheap_alone, conv=nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="must not depend on the others"):
        count_multiplications(network, IMAGES)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        count_multiplications(nn.Conv2d(4, 4, 1), IMAGES[:0])


def test_counting_changes_neither_modes_nor_weights_nor_statistics() -> None:
    network = build_backbone("resnet20", (4, 8, 6), 10, width=0.5)
    network.get_submodule("norm").eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    count_multiplications(network, IMAGES)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    network(IMAGES).sum().backward()


# Weights


def small_sparse_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
        nn.Linear(2 * 5 * 4, 3),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter[torch.rand_like(parameter) < 0.6] = 0
    return network


def run_by_hand(network: nn.Sequential, image: Tensor) -> tuple[Tensor, int]:
    """The logits of one image, one multiplication at a time, and how many had a non-zero weight.

    A padded pixel is multiplied like any other.
    """
    conv, _, transposed, _, linear = network
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(transposed, nn.ConvTranspose2d)
    assert isinstance(linear, nn.Linear)
    assert conv.bias is not None
    assert transposed.bias is not None
    count = 0
    padded = functional.pad(image, (1, 1, 1, 1))
    maps = conv.bias[:, None, None].repeat(1, 4, 3)
    for o, y, x, i, dy, dx in product(range(4), range(4), range(3), range(2), range(3), range(3)):
        group = o // 2
        weight = conv.weight[o, i, dy, dx]
        maps[o, y, x] += weight * padded[2 * group + i, 2 * y + dy, 2 * x + dx]
        count += int(weight != 0)
    maps = maps.relu()
    larger = transposed.bias[:, None, None].repeat(1, 5, 4)
    for i, y, x, o, dy, dx in product(range(4), range(4), range(3), range(2), range(2), range(2)):
        weight = transposed.weight[i, o, dy, dx]
        larger[o, y + dy, x + dx] += weight * maps[i, y, x]
        count += int(weight != 0)
    logits = linear.bias.clone()
    for o, i in product(range(3), range(40)):
        logits[o] += linear.weight[o, i] * larger.flatten()[i]
        count += int(linear.weight[o, i] != 0)
    return logits, count


@torch.no_grad()
def test_nonzero_multiplications_agree_with_a_count_by_hand() -> None:
    network = small_sparse_network()
    logits, by_hand = run_by_hand(network, IMAGES[0])
    torch.testing.assert_close(logits, network(IMAGES[:1])[0])
    cost = count_multiplications(network, IMAGES)
    assert cost.nonzero_multiplications == by_hand
    assert cost.multiplications == 12 * (9 * 2 * 4) + 12 * (4 * 4 * 2) + 40 * 3


def test_zero_weights_do_not_lower_the_multiplications() -> None:
    network = build_backbone("conv", (4, 8, 6), 10)
    dense = count_multiplications(network, IMAGES)
    nn.init.zeros_(network.get_parameter("conv2.weight"))
    masked = count_multiplications(network, IMAGES)
    assert masked.multiplications == dense.multiplications
    saved = dense.nonzero_multiplications - masked.nonzero_multiplications
    assert saved == dense.per_layer["conv2"][0]


def test_masks_of_torch_prune_count_as_zeros() -> None:
    network = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(120, 2))
    torch.nn.utils.prune.l1_unstructured(network[0], "weight", amount=0.5)
    cost = count_multiplications(network, IMAGES)
    assert cost.nonzero_multiplications == 24 * 90 + 240
    assert cost.multiplications == 24 * 180 + 240
    assert nonzero_weights(network) == 90 + 240
    assert sparsity(network) == pytest.approx(90 / 420)


def test_parameters_are_counted_once_and_weights_without_biases() -> None:
    shared = nn.Linear(6, 6)
    network = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), shared, shared)
    nn.init.zeros_(shared.bias)
    assert count_parameters(network) == (9 * 4 * 5 + 5) + 2 * 5 + (36 + 6)
    assert nonzero_weights(network) == 9 * 4 * 5 + 36
    assert sparsity(network) == 0
    nn.init.zeros_(shared.weight)
    assert sparsity(network) == pytest.approx(36 / 216)
    assert sparsity(nn.ReLU()) == 0
