"""Backbones: their sizes in closed form, their options, and that tools can read them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch_pruning
from torch import fx, nn

from testbed.backbones import BACKBONES, ConvOptions, build_backbone, check_backbone
from testbed.cost import count_multiplications
from testbed.resnet import BasicBlock, PaddingShortcut

PHOTOGRAPH = (3, 32, 32)
DIGIT = (1, 8, 8)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every tiny operation are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def multiplications(network: nn.Module, shape: tuple[int, int, int] = PHOTOGRAPH) -> Counter[str]:
    cost = count_multiplications(network, torch.zeros(1, *shape))
    return Counter({layer: int(count) for layer, count in cost.per_layer.items()})


def in_convs(name: str, n_classes: int = 10, **options: Any) -> int:
    counted = multiplications(build_backbone(name, PHOTOGRAPH, n_classes, **options))
    return sum(count for layer, count in counted.items() if layer.startswith("conv"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 27_058_176),
        ({"depth": 4}, 27_058_176),
        ({"depth": 6}, 51_204_096),
        ({"depth": 8}, 288_018_432),
        ({"depth": 4, "batch_norm": False, "dropout": 0.1}, 27_058_176),
        ({"channels": [64, 64, 128, 128], "pool_after": [2]}, 96_141_312),
        ({"channels": [64, 64, 128, 128], "pool_after": [2, 4]}, 96_141_312),
    ],
)
def test_conv_family_has_the_multiplications_of_its_closed_form(
    options: dict[str, Any], expected: int
) -> None:
    assert in_convs("conv", **options) == expected


def test_depths_4_and_8_have_the_linear_layers_of_the_report() -> None:
    for depth, features in ((4, 3072), (8, 4096)):
        counted = multiplications(build_backbone("conv", PHOTOGRAPH, 10, depth=depth))
        assert counted["hidden"] == features * 512
        assert counted["classifier"] == 512 * 10


def test_lfw3_net_has_the_multiplications_of_its_closed_form() -> None:
    assert in_convs("lfw3_net", n_classes=3) == 4_423_680
    counted = multiplications(build_backbone("lfw3_net", PHOTOGRAPH, 3))
    assert (counted["hidden"], counted["classifier"]) == (1024 * 128, 128 * 3)


# The linear layer is included. METHODS.md gives 125,486,336 for resnet56, which counts it twice:
# 442,368 + 18 * 2,359,296 + 2 * (1,179,648 + 17 * 2,359,296) + 640 = 125,485,696.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m_cifarnet", 174_301_824),
        ("vgg16", 313_201_664),
        ("resnet18", 555_422_720),
        ("resnet20", 40_551_040),
        ("resnet56", 125_485_696),
    ],
)
def test_other_backbones_have_the_multiplications_of_their_closed_form(
    name: str, expected: int
) -> None:
    assert multiplications(build_backbone(name, PHOTOGRAPH, 10)).total() == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_give_logits_and_gradients_at_half_width(name: str) -> None:
    network = build_backbone(name, PHOTOGRAPH, 7, width=0.5)
    logits = network(torch.randn(2, *PHOTOGRAPH))
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_width_scales_the_channels_of_every_conv() -> None:
    network = build_backbone("conv", PHOTOGRAPH, 10, depth=4, width=0.5)
    widths = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert widths == [16, 25, 10, 6]


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"vgg16"}))
def test_backbones_take_digits(name: str) -> None:
    network = build_backbone(name, DIGIT, 10).eval()
    assert network(torch.zeros(2, *DIGIT)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 64, 40)])
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_take_images_that_are_not_square(name: str, shape: tuple[int, int, int]) -> None:
    network = build_backbone(name, shape, 3, width=0.25).eval()
    assert network(torch.zeros(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("vgg16", DIGIT, {}),
        ("m_cifarnet", (1, 2, 8), {}),
        ("lfw3_net", (1, 8, 7), {}),
        ("conv", DIGIT, {"pool_after": [1, 2, 3, 4]}),
    ],
)
def test_too_small_images_are_refused_with_the_smallest_size(
    name: str, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"needs images of at least \d+ x \d+ pixels, got"):
        build_backbone(name, shape, 10, **options)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_seed_draws_the_same_network(name: str) -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = build_backbone(name, PHOTOGRAPH, 10, width=0.25)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_convs_have_a_bias_only_where_no_batch_norm_follows() -> None:
    for batch_norm in (True, False):
        network = build_backbone("conv", DIGIT, 10, batch_norm=batch_norm)
        convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        assert all((conv.bias is None) == batch_norm for conv in convs)


def test_dropout_follows_each_conv_of_the_conv_family() -> None:
    network = build_backbone("conv", DIGIT, 10, depth=6, dropout=0.1)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.1] * 6


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_relu_after_dropout_and_pool_gives_what_one_before_them_does(dropout: float) -> None:
    """To the bit, gradients too."""
    network = build_backbone("conv", PHOTOGRAPH, 10, pool_after=[1, 2, 4], dropout=dropout)
    images = torch.randn(4, *PHOTOGRAPH, generator=torch.Generator().manual_seed(0))

    def usual(maps: torch.Tensor) -> torch.Tensor:
        for i in range(1, 5):
            for kind in ("conv", "norm", "relu", "dropout", "pool"):
                maps = getattr(network, f"{kind}{i}", nn.Identity())(maps)
        maps = network.hidden_relu(network.hidden(network.flatten(maps)))
        logits: torch.Tensor = network.classifier(maps)
        return logits

    found = []
    for forward in (network, usual):
        torch.manual_seed(1)
        network.zero_grad()
        logits = forward(images)
        logits.square().sum().backward()
        found.append([logits, *(parameter.grad.clone() for parameter in network.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnov", {}, "unknown backbone 'cnov'. Did you mean 'conv'?"),
        ("conv", {"dept": 4}, "unknown option of backbone conv 'dept'. Did you mean 'depth'?"),
        ("conv", {"depth": 5}, "backbone conv: depth: Input should be 4, 6 or 8, got 5"),
        ("conv", {"dropout": 1.5}, "backbone conv: dropout: Input should be less than 1, got 1.5"),
        ("conv", {"pool_after": [5]}, "pool_after takes different convs from 1 to 4"),
        ("conv", {"depth": 4, "channels": [8]}, "give depth or channels, not both"),
        ("resnet20", {"widht": 2}, "Did you mean 'width'?"),
        ("no_such_package.nets:net", {}, "no_such_package"),
        (f"{__name__}:pooled_linear", {"scael": 2}, "Did you mean 'scale'?"),
        (f"{__name__}:DIGIT", {}, "Expected a function"),
    ],
)
def test_wrong_options_are_named_before_anything_is_built(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        check_backbone(name, options)
    assert message in str(error.value)
    with pytest.raises(ValueError):
        build_backbone(name, PHOTOGRAPH, 10, **options)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"depth.*; .*dropout"):
        check_backbone("conv", {"depth": 5, "dropout": 2})


def test_an_image_shape_with_channels_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="channels, height, width"):
        build_backbone("conv", (32, 32), 10)  # type: ignore[arg-type]


def pooled_linear(input_shape: tuple[int, int, int], n_classes: int, scale: int = 1) -> nn.Module:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(scale), nn.Flatten())
    return pooled.append(nn.Linear(input_shape[0] * scale**2, n_classes))


def not_a_network(input_shape: tuple[int, int, int], n_classes: int) -> str:
    return "a network"


def test_a_network_of_the_user_is_built_by_its_reference() -> None:
    name = f"{__name__}:pooled_linear"
    check_backbone(name, {"scale": 2})
    network = build_backbone(name, PHOTOGRAPH, 5, scale=2)
    assert network(torch.zeros(2, *PHOTOGRAPH)).shape == (2, 5)


def test_a_function_that_gives_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected a torch\.nn\.Module .* got str"):
        build_backbone(f"{__name__}:not_a_network", PHOTOGRAPH, 5)


def test_the_padding_shortcut_keeps_channels_and_adds_zeros() -> None:
    images = torch.randn(2, 3, 5, 4)
    shortened = PaddingShortcut(3, 7, stride=2)(images)
    assert shortened.shape == (2, 7, 3, 2)
    assert torch.equal(shortened[:, :3], images[:, :, ::2, ::2])
    assert not shortened[:, 3:].any()


@pytest.mark.parametrize("name", ["conv", "resnet20"])
def test_backbones_trace_with_fx_to_the_same_outputs(name: str) -> None:
    network = build_backbone(name, DIGIT, 10).eval()
    images = torch.randn(3, *DIGIT)
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_inner_channels_of_residual_blocks_can_go(name: str) -> None:
    network = build_backbone(name, DIGIT, 10, width=0.5).eval()
    images = torch.randn(2, *DIGIT)
    block = network.get_submodule("stage2.0")
    assert isinstance(block, BasicBlock)
    removed = [0, 3]
    with torch.no_grad():
        block.norm1.weight[removed] = 0
        block.norm1.bias[removed] = 0
        masked = network(images)
    graph = torch_pruning.DependencyGraph().build_dependency(network, images)
    graph.get_pruning_group(
        block.conv1, torch_pruning.prune_conv_out_channels, idxs=removed
    ).prune()
    assert block.conv1.out_channels == block.conv2.in_channels == block.conv2.out_channels - 2
    torch.testing.assert_close(network(images), masked)


def test_the_depth_that_is_built_is_the_depth_that_is_named() -> None:
    assert ConvOptions().depth == 4
    assert ConvOptions(channels=(8, 8)).depth is None
    assert ConvOptions.model_validate(ConvOptions().model_dump()) == ConvOptions()
