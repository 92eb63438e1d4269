"""Costs: closed forms, strictness, and which layer work is booked on."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from testbed.backbones import build_backbone
from testbed.cost import (
    UncountedOperationError,
    count_multiplications,
    layers_kept_whole,
)

IMAGES = torch.randn(5, 4, 8, 6, generator=torch.Generator().manual_seed(0))
ROWS = IMAGES.flatten(2)  # (5, 4, 48), as a sequence of 4 vectors of 48


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every tiny operation are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Network(nn.Module):
    """A network written as a function of its layers and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)


def per_layer(network: nn.Module, inputs: Tensor = IMAGES) -> dict[str, list[int]]:
    cost = count_multiplications(network, inputs)
    total = sum(cost.per_layer.values(), torch.zeros(len(inputs), dtype=torch.int64))
    assert torch.equal(total, cost.per_image)
    return {layer: count.tolist() for layer, count in cost.per_layer.items()}


def attend(q: Tensor) -> Tensor:
    q = q.unflatten(2, (2, 24)).transpose(1, 2)
    return functional.scaled_dot_product_attention(q, q, q)


CLOSED_FORMS: dict[str, tuple[nn.Module, Tensor, int]] = {
    "conv": (nn.Conv2d(4, 7, 3), IMAGES, 9 * 4 * 7 * 6 * 4),
    "strides": (nn.Conv2d(4, 7, (3, 5), 2, padding=(1, 2)), IMAGES, 15 * 4 * 7 * 4 * 3),
    "dilation": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), IMAGES, 9 * 4 * 6 * 8 * 6),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), IMAGES, 9 * 4 * 6 * 8 * 6),
    "circular": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        IMAGES,
        9 * 4 * 6 * 8 * 6,
    ),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGES, 9 * 2 * 6 * 8 * 6),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGES, 9 * 8 * 8 * 6),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), IMAGES, 9 * 4 * 6 * 8 * 6),
    "transposed groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGES, 9 * 4 * 3 * 8 * 6),
    "conv1d": (nn.Conv1d(4, 6, 3), ROWS, 3 * 4 * 6 * 46),
    "conv3d": (nn.Conv3d(1, 6, 3), IMAGES[:, None], 27 * 6 * 2 * 6 * 4),
    "linear": (nn.Linear(48, 10), ROWS, 4 * 48 * 10),
    "linear without bias": (nn.Linear(48, 10, bias=False), ROWS, 4 * 48 * 10),
    "matmul": (Network(lambda _, x: x @ x.mT), ROWS, 4 * 4 * 48),
    "matrix and vector": (Network(lambda _, x: x @ x[0, 0]), ROWS, 4 * 48),
    "einsum": (Network(lambda _, x: torch.einsum("nij,nkj->nik", x, x)), ROWS, 4 * 4 * 48),
    "attention": (Network(lambda _, x: attend(x)), ROWS, 2 * 4 * 4 * 48),
    "multi-head attention": (
        Network(
            lambda net, x: net.heads(x, x, x)[0],
            heads=nn.MultiheadAttention(48, 2, batch_first=True),
        ),
        ROWS,
        4 * 4 * 48 * 48 + 2 * 4 * 4 * 48,
    ),
    "transformer layer": (
        nn.TransformerEncoderLayer(48, 2, 96, batch_first=True),
        ROWS,
        4 * 4 * 48 * 48 + 2 * 4 * 4 * 48 + 2 * 4 * 48 * 96,
    ),
    "gru": (nn.GRU(48, 6, batch_first=True), ROWS, 4 * (48 + 6) * 18),
    "gru cell": (nn.GRUCell(48, 6), ROWS[:, 0], (48 + 6) * 18),
    "lstm cell": (
        Network(lambda net, x: net.cell(x)[0], cell=nn.LSTMCell(48, 6)),
        ROWS[:, 0],
        (48 + 6) * 24,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_operations_cost_their_closed_form(name: str, mode: Callable[[], Any]) -> None:
    network, inputs, expected = CLOSED_FORMS[name]
    with mode():
        cost = count_multiplications(network, inputs)
    assert cost.per_image.tolist() == [expected] * len(inputs)
    assert cost.multiplications == expected


def test_the_count_is_half_of_what_flop_counter_mode_counts() -> None:
    network = build_backbone("resnet20", (4, 8, 6), 10)
    with FlopCounterMode(display=False) as counter:
        network(IMAGES[:1])
    assert 2 * count_multiplications(network, IMAGES).multiplications == counter.get_total_flops()


def test_autocast_does_not_change_the_count() -> None:
    network = build_backbone("conv", (4, 8, 6), 10)
    plain = count_multiplications(network, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert count_multiplications(network, IMAGES).multiplications == plain.multiplications


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Hardswish(inplace=True), nn.PReLU(), nn.GELU(), nn.GLU(1), nn.Softmax(1)),
        nn.Sequential(
            nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.LPPool2d(2, 2)
        ),
        nn.Sequential(nn.AdaptiveMaxPool2d(4), nn.Upsample(scale_factor=2, mode="bilinear")),
        nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(6)),
        nn.Sequential(nn.LocalResponseNorm(2), nn.RMSNorm(6), nn.Dropout(), nn.Dropout2d()),
        nn.Sequential(
            nn.ChannelShuffle(2), nn.PixelShuffle(2), nn.ReflectionPad2d(1), nn.Unfold(3)
        ),
        Network(lambda _, x: x.abs_().topk(2, 1)[0].cumsum(1).std(1, keepdim=True).log_()),
        Network(
            lambda _, x: torch.cat([x, x.flip(1)]).index_select(1, x[0, :2, 0, 0].long().abs())
        ),
    ],
    ids=lambda network: " ".join(type(layer).__name__ for layer in network.modules()),
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_elementwise_work_pooling_and_normalisation_are_free(
    network: nn.Module, mode: Callable[[], Any]
) -> None:
    with mode():
        cost = count_multiplications(network, IMAGES.clone())
    assert cost.multiplications == 0
    assert cost.per_layer == {}


# Strictness


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_an_lstm_on_the_cpu_is_an_error_that_names_operation_and_layer() -> None:
    network = Network(lambda net, x: net.memory(x)[0], memory=nn.LSTM(48, 6, batch_first=True))
    with pytest.raises(UncountedOperationError, match=r"aten::mkldnn_rnn_layer.*'memory'"):
        count_multiplications(network, ROWS)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_fused_convolution_without_a_formula_is_an_error() -> None:
    def convolve(net: Any, images: Tensor) -> Tensor:
        fused: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            images, net.up.weight, net.up.bias, [0, 0], [0, 0], [1, 1], [1, 1], 1, "relu", [], ""
        )
        return fused

    with pytest.raises(UncountedOperationError, match="_convolution_transpose_pointwise"):
        count_multiplications(Network(convolve, up=nn.ConvTranspose2d(4, 7, 3)), IMAGES)


def test_a_quantised_layer_is_an_error() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch without quantised kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to move these kernels to torchao
        weight = torch.quantize_per_tensor(torch.randn(3, 48), 0.1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    network = Network(lambda _, x: torch.ops.quantized.linear_dynamic(x, packed))
    with pytest.raises(UncountedOperationError, match="quantized::linear_dynamic"):
        count_multiplications(network, ROWS)


def test_torchscript_is_an_error_because_its_fused_operations_cannot_be_seen() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but users still have such networks
        script = torch.jit.trace(nn.Conv2d(4, 7, 3), IMAGES)
    with pytest.raises(UncountedOperationError, match="'scripted' is TorchScript"):
        count_multiplications(Network(lambda net, x: net.scripted(x), scripted=script), IMAGES)


@torch.library.custom_op("cost_test::project", mutates_args=())
def project(images: Tensor, weight: Tensor) -> Tensor:
    return images.flatten(1) @ weight


@pytest.fixture
def formula_for_project() -> Iterator[None]:
    @register_flop_formula(torch.ops.cost_test.project)
    def flops(images: list[int], weight: list[int], *, out_shape: Any = None) -> int:
        return 2 * images[0] * weight[0] * weight[1]

    yield
    del flop_registry[torch.ops.cost_test.project]


PROJECTING = Network(lambda _, x: project(x, torch.ones(192, 3)))


def test_a_custom_operation_without_formula_is_an_error_that_says_how_to_register_one() -> None:
    with pytest.raises(UncountedOperationError) as error:
        count_multiplications(PROJECTING, IMAGES)
    assert "cost_test::project" in str(error.value)
    assert "register_flop_formula(torch.ops.cost_test.project)" in str(error.value)


@pytest.mark.usefixtures("formula_for_project")
def test_a_custom_operation_with_a_formula_is_counted() -> None:
    assert per_layer(PROJECTING) == {"": [192 * 3] * 5}


def test_a_failed_count_leaves_the_network_as_it_was() -> None:
    network = Network(
        lambda net, x: project(net.norm(x), torch.ones(192, 3)), norm=nn.BatchNorm2d(4)
    )
    with pytest.raises(UncountedOperationError):
        count_multiplications(network, IMAGES)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.backends.mha.get_fastpath_enabled()


# Layers


def test_work_is_booked_on_the_innermost_layer_and_on_the_network_outside_of_all() -> None:
    inner = Network(lambda net, x: net.conv(x) @ torch.ones(4, 2), conv=nn.Conv2d(4, 7, 3))
    network = Network(lambda net, x: net.inner(x).flatten(1) @ torch.ones(84, 5), inner=inner)
    assert per_layer(network) == {
        "inner.conv": [9 * 4 * 7 * 6 * 4] * 5,
        "inner": [7 * 6 * 4 * 2] * 5,
        "": [84 * 5] * 5,
    }


def test_the_work_of_hooks_belongs_to_their_layer() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Linear(6, 6))
    network[0].register_forward_pre_hook(lambda _, inputs: inputs[0] @ torch.ones(6, 6))
    network[0].register_forward_hook(lambda _, inputs, outputs: outputs @ torch.ones(6, 6))
    assert per_layer(network) == {"0": [2 * 4 * 8 * 36] * 5, "1": [4 * 8 * 36] * 5}


def test_a_layer_used_twice_counts_twice() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(conv, nn.ReLU(), conv)
    assert per_layer(network) == {"0": [2 * 9 * 4 * 4 * 8 * 6] * 5}


def test_a_convolution_by_a_parameter_of_the_user_is_booked_where_it_runs() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.zeros(7, 4, 3, 3))

        def forward(self, images: Tensor) -> Tensor:
            return functional.conv2d(images, self.filters)

    network = nn.Sequential(Own(), nn.ReLU())
    assert per_layer(network) == {"0": [9 * 4 * 7 * 6 * 4] * 5}
    assert count_multiplications(network, IMAGES).nonzero_multiplications == 9 * 4 * 7 * 6 * 4


def test_weights_composed_once_a_batch_are_charged_to_every_image() -> None:
    def low_rank(_: Any, rows: Tensor) -> Tensor:
        return rows[:, 0] @ (torch.ones(48, 2) @ torch.ones(2, 6))

    assert per_layer(Network(low_rank), ROWS) == {"": [48 * 6 + 48 * 2 * 6] * 5}


class ComposingNetwork(nn.Module):
    """Composes its weights in its first run after its mode was set, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        assert images.isfinite().all(), "it needs values to run"
        if self.kept is None:
            self.kept = torch.ones(48, 2) @ torch.ones(2, 6)
        return images.flatten(2)[:, 0] @ self.kept

    def train(self, mode: bool = True) -> Self:
        self.kept = None
        return super().train(mode)


def test_weights_composed_once_and_kept_are_charged_to_every_image() -> None:
    assert per_layer(ComposingNetwork(), IMAGES) == {"": [48 * 6 + 48 * 2 * 6] * 5}


# Networks that decide for each image


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [n for n in CLOSED_FORMS if n != "gru"])  # cuDNN's is unknown
def test_operations_cost_the_same_on_a_gpu(name: str) -> None:
    network, inputs, expected = CLOSED_FORMS[name]
    cost = count_multiplications(copy.deepcopy(network).cuda(), inputs)
    assert cost.per_image.tolist() == [expected] * len(inputs)


def test_layers_that_lost_no_outputs_beside_others_are_kept_whole() -> None:
    def network(first: int, second: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, first, 1), nn.ConvTranspose2d(first, second, 1), nn.Conv2d(second, 5, 1)
        )

    dense = network(4, 6)
    assert layers_kept_whole(network(2, 6), dense) == ["1", "2"]
    assert layers_kept_whole(network(4, 3), dense) == ["0", "2"]
    assert layers_kept_whole(dense, dense) == []  # no channel method's
    assert layers_kept_whole(nn.Sequential(dense), dense) == []
