"""Which residual blocks can be skipped, found in traced networks."""

import copy
import pickle
from typing import Any

import pytest
import tiny
import torch
from small_networks import Net, backbone, conv, pooled
from torch import Tensor, nn
from two_decisions import Adds

from rnp.execution.masked_run import Traced
from rnp.structure.residual_blocks import residual_blocks

LAYERS: dict[str, Any] = {"stem": conv(3, 4), "a": conv(4, 4), "b": conv(4, 4)}


def test_the_blocks_of_a_resnet_that_keep_the_shape_are_found() -> None:
    found = [block.name for block in residual_blocks(backbone("resnet20")).blocks]
    first, *others = ([f"stage{s}.{b}" for b in range(3)] for s in (1, 2, 3))
    assert found == [*first, *(name for stage in others for name in stage[1:])]


def test_a_block_knows_its_channels_and_its_batch_norms() -> None:
    (block,) = residual_blocks(tiny.network("residual")).blocks
    assert (block.name, block.channels, block.norms) == ("conv1", 6, ("norm1",))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_blocks_of_other_libraries_networks_are_found(name: str) -> None:
    from testbed.model_zoo import build

    found = residual_blocks(build(name, (3, 32, 32), 5, {})).blocks
    # Of ResNet-18 one block of each stage but the first changes the shape.
    assert len(found) == {"torchvision:resnet18": 5, "torchvision:mobilenet_v2": 10}[name]


def adds_in_place(net: Net, x: Tensor) -> Tensor:
    outer = net.stem(x)
    return net.out(pooled(outer.add_(net.b(net.a(outer)))))  # type: ignore[no-any-return]


def test_blocks_that_add_in_place_are_found_unless_their_input_is_read_later() -> None:
    model = Net(adds_in_place, **copy.deepcopy(LAYERS), out=nn.Linear(4, 5))
    assert [block.sum for block in residual_blocks(model).blocks] == ["add_"]
    # In the second block of it what was written into is read again.
    assert [block.name for block in residual_blocks(Adds()).blocks] == ["conv1"]


def reads_twice(net: Net, x: Tensor) -> Tensor:
    outer = net.stem(x)
    inner = net.a(outer)
    return net.out(pooled(outer + net.b(inner)) + pooled(inner))  # type: ignore[no-any-return]


def reads_another(net: Net, x: Tensor) -> Tensor:
    first = net.stem(x)
    outer = net.a(first)
    return net.out(pooled(outer + net.b(outer) * first))  # type: ignore[no-any-return]


def writes_into_its_input(net: Net, x: Tensor) -> Tensor:
    outer = net.stem(x)
    return net.out(pooled(outer + net.b(net.a(outer.relu_()))))  # type: ignore[no-any-return]


def changes_the_shortcut(net: Net, x: Tensor) -> Tensor:
    outer = net.stem(x)
    return net.out(pooled(net.a(outer) + net.b(outer)))  # type: ignore[no-any-return]


def from_the_images(net: Net, x: Tensor) -> Tensor:
    return net.out(pooled(net.a(x + net.stem(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (reads_twice, "also reads its branch"),
        (reads_another, "its branch also reads"),
        (writes_into_its_input, "writes into its input"),
        (changes_the_shortcut, "neither side is what the other one starts from"),
    ],
)
def test_a_sum_that_is_no_block_to_be_skipped_is_refused_with_the_reason(
    forward: Any, reason: str
) -> None:
    model = Net(forward, **copy.deepcopy(LAYERS), out=nn.Linear(4, 5))
    with pytest.raises(ValueError, match="No residual block of Net can be skipped") as error:
        residual_blocks(model)
    assert reason in str(error.value)


def test_a_network_without_sums_is_refused_and_told_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"it adds no two tensors\. Expected .* as in resnet20"):
        residual_blocks(tiny.network("conv"))


def test_a_block_that_starts_from_the_images_is_always_computed() -> None:
    model = Net(from_the_images, stem=conv(3, 3), a=conv(3, 4), out=nn.Linear(4, 5))
    with pytest.raises(ValueError, match="it starts from the images themselves"):
        residual_blocks(model)


def test_a_route_without_blocks_is_the_network_without_their_branches() -> None:
    model = tiny.network("residual").eval()
    flow = residual_blocks(model)
    images = torch.randn(3, 2, 8, 8)
    whole, without = (
        Traced(model, graph=flow.route([kept]).graph).run(images) for kept in (True, False)
    )
    assert torch.equal(whole, model(images))
    stem = model.stem(images).relu()
    assert torch.equal(without, model.classifier(stem.relu().mean(dim=(2, 3))))


def test_found_blocks_can_be_pickled_and_are_shared_by_copies() -> None:
    flow = residual_blocks(backbone("resnet56"))
    assert copy.deepcopy(flow) is flow
    again = pickle.loads(pickle.dumps(flow))
    assert again.blocks == flow.blocks
    assert [node.name for node in again.nodes] == [node.name for node in flow.nodes]
