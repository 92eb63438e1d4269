"""Networks of timm and torchvision by name."""

import re
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from testbed import model_zoo
from testbed.backbones import build_backbone, check_backbone
from testbed.dense_store import DenseStore


def logits(name: str, channels: int, n_classes: int, **options: Any) -> torch.Size:
    check_backbone(name, options)
    network = build_backbone(name, (channels, 32, 32), n_classes, **options).train()
    return network(torch.zeros(2, channels, 32, 32)).shape


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_gets_classes_and_channels_of_the_data(channels: int) -> None:
    pytest.importorskip("timm")
    assert logits("timm:resnet18", channels, 7) == (2, 7)
    assert logits("timm:resnet18.a1_in1k", channels, 7, drop_rate=0.1) == (2, 7)


def test_torchvision_gets_the_classes_of_the_data() -> None:
    assert logits("torchvision:squeezenet1_1", 3, 7, dropout=0.1) == (2, 7)


def test_networks_with_heads_for_training_come_without_them() -> None:
    network = build_backbone("torchvision:googlenet", (3, 64, 64), 5).train()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_grey_images_are_no_use_to_torchvision_and_it_says_so() -> None:
    with pytest.raises(ValueError, match="take images of 3 channels, these have 1"):
        build_backbone("torchvision:resnet18", (1, 32, 32), 7)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("torchvision:resnet5", {}, "unknown network of torchvision 'resnet5'. Did you mean 'res"),
        ("torchvision:fcn_resnet50", {}, "unknown network of torchvision"),  # gives no logits
        ("torchvision:resnet18", {"num_classes": 5}, "'num_classes' follows from the data"),
        ("torchvision:resnet18", {"weights": "IMAGENET_V1"}, "Did you mean 'IMAGENET1K_V1'?"),
        ("timm:resnet_18", {}, "unknown network of timm 'resnet_18'. Did you mean 'resnet18'?"),
        ("timm:resnet18.a1_in2k", {}, "unknown weights of timm:resnet18 'a1_in2k'. Did you mean"),
        ("timm:resnet18", {"in_chans": 1}, "'in_chans' follows from the data"),
        ("timm:resnet18", {"weights": "best"}, "unknown weights of timm:resnet18 'best'."),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, options: dict[str, Any], said: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError) as raised:
        check_backbone(name, options)
    assert said in str(raised.value) and len(str(raised.value)) < 1500


def test_an_option_that_a_library_does_not_take_is_said() -> None:
    with pytest.raises(ValueError, match=r"torchvision:resnet18 raised TypeError: .*'widht'"):
        build_backbone("torchvision:resnet18", (3, 32, 32), 5, widht=2)


def test_without_timm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 needs timm, .* pip install timm"):
        check_backbone("timm:resnet18", {})


def unreachable(request: Any, timeout: float) -> None:
    raise urllib.error.URLError("Name or service not known")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_offline_it_is_said_what_to_download_and_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name.partition(":")[0])
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    if name.startswith("timm"):
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    check_backbone(name, {"weights": "pretrained"})
    with pytest.raises(ValueError) as raised:
        build_backbone(name, (3, 32, 32), 1000, weights="pretrained")
    said = str(raised.value)
    assert re.fullmatch(r"The weights of .* cannot be .*: download https://\S+ where .*\.", said)
    assert "checkpoints/resnet18-" in said or "name the file as weights" in said


def test_weights_that_were_downloaded_are_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = build_backbone("torchvision:squeezenet1_1", (3, 64, 64), 1000)
    (tmp_path / "checkpoints").mkdir()
    torch.save(published.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    # The hash in the file's name is checked on download only.
    for weights in ("pretrained", "IMAGENET1K_V1"):
        network = build_backbone("torchvision:squeezenet1_1", (3, 64, 64), 1000, weights=weights)
        assert torch.equal(_all(network), _all(published))
    with pytest.raises(ValueError, match=r"has 1000 classes, the data set 5: only .*classifier\.1"):
        build_backbone("torchvision:squeezenet1_1", (3, 64, 64), 5, weights="pretrained")


def _all(network: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


def test_the_version_of_the_library_is_in_a_dense_networks_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision

    spec = {"backbone": "torchvision:resnet18"}
    before = DenseStore.key(spec)
    monkeypatch.setattr(torchvision, "__version__", "0.0")
    assert DenseStore.key(spec) != before
    assert model_zoo.library_of("torchvision.models:resnet18") is None
