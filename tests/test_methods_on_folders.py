"""A folder that is larger than memory serves every method: none reads it whole."""

from typing import Any

import pytest
import torch
from picture_folders import save
from small_networks import Net, conv, pooled
from torch import Tensor, nn

from orchestrator.methods import METHODS, method_class
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Splits, load_splits
from testbed.image_folder import MappedPixels
from testbed.measurement import measure
from testbed.method import Run, judged_on
from testbed.training import Training, train

MOST_AT_ONCE = 256  # images
QUICK: dict[str, dict[str, Any]] = {
    "rnp": {"steps": 20},
    "rnp_groups": {"steps": 20},
    "network_routing": {"steps": 20},
    "policy_gradient": {"steps": 3, "drop_bound": 60.0},
    # Few weights of a tiny network can go in two epochs.
    "str": {"sparsity": 0.2},
    "joint_sparsity": {"sparsity": 0.2},
    "cascade": {"stages": (0.34, 0.58)},
    "cascade_random": {"stages": (0.34, 0.58)},
    "second_look": {"keep_multiplications": 0.44},
}
CPU = torch.device("cpu")
LEARNING = Training(epochs=3, batch_size=64, learning_rate=0.05, precision="float32")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """More images of each part than may be read at once."""
    root = tmp_path_factory.mktemp("folders")
    for part, n in (("train", MOST_AT_ONCE + 40), ("val", MOST_AT_ONCE + 40), ("test", 10)):
        for number in range(n):
            shade = number % 90
            colour = (shade + 150, shade, 60) if number % 2 else (shade, shade + 150, 60)
            save(root / "pets" / part / "ab"[number % 2] / f"{number}.png", colour, (9, 10))
    return load_splits(DataOptions(name="pets", image_size=8), root, seed=0)


def trained(network: nn.Module, splits: Splits) -> nn.Module:
    train(network, splits, LEARNING, seed=0, device=CPU)
    return network


@pytest.fixture(scope="module")
def dense(splits: Splits) -> nn.Module:
    torch.manual_seed(0)
    network = build_backbone("conv", splits.input_shape, 2, channels=(6, 8), hidden=8)
    return trained(network, splits)


@pytest.fixture(scope="module")
def residual(splits: Splits) -> nn.Module:
    """Two blocks that can be skipped, for methods that take no other network."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        x = (x + net.a(x)).relu()
        return net.out(pooled(x + net.b(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    layers = {"stem": conv(3, 6), "a": conv(6, 6), "b": conv(6, 6), "out": nn.Linear(6, 2)}
    return trained(Net(forward, **layers), splits)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_no_more_than_a_batch_at_once(
    name: str,
    dense: nn.Module,
    residual: nn.Module,
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in ("network_routing", "static_blocks"):
        dense = residual
    read, most = MappedPixels.read, 0

    def counting(pixels: MappedPixels, margin: bool = False) -> Tensor:
        nonlocal most
        most = max(most, len(pixels.rows))
        return read(pixels, margin)

    monkeypatch.setattr(MappedPixels, "read", counting)
    monkeypatch.setattr("testbed.prediction.MOST_VALUES", 3 * 8 * 8 * MOST_AT_ONCE // 2)
    monkeypatch.setattr("testbed.measurement.TIMED_BYTES", 4 * 3 * 8 * 8 * MOST_AT_ONCE // 2)
    monkeypatch.setattr("baselines.channels.batch_norm_statistics.BATCH_SIZE", MOST_AT_ONCE // 2)
    method = method_class(name)(**QUICK.get(name, {}))
    settings = LEARNING.model_copy(update={"epochs": 2})
    run = Run(seed=0, device=CPU, training=settings, fine_tuning=settings)
    pruned = method.prune(dense, splits, run)
    judged = judged_on(method, splits)
    figures = measure(pruned, dense, judged, CPU).figures
    assert 0 < most <= MOST_AT_ONCE < len(splits.train)
    assert float(figures["val_accuracy"]) > 0.6
