"""Weights of a pretrained network: read as tensors alone, and fitted name by name."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from testbed.backbones import build_backbone, check_backbone, check_weights_file, draw_backbone
from testbed.weights import file_digest, put_into, read_weights

SHAPE = (2, 8, 8)
OPTIONS: dict[str, Any] = {"channels": (4, 6), "hidden": 5}


def network(n_classes: int = 3, **changed: Any) -> nn.Module:
    return build_backbone("conv", SHAPE, n_classes, **{**OPTIONS, **changed})


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


Save = Callable[[dict[str, Tensor], Path], None]
WRITTEN: dict[str, tuple[str, Save]] = {
    "safetensors": ("w.safetensors", save_file),
    "pt": ("w.pt", torch.save),
    "under state_dict": ("w.pth", lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p)),
    "under model": ("w.pth.tar", lambda s, p: torch.save({"model": s}, p)),
    "of DataParallel": ("w.pt", lambda s, p: torch.save({f"module.{k}": s[k] for k in s}, p)),
    "without counters": (
        "w.safetensors",
        lambda s, p: save_file({k: v for k, v in s.items() if "num_batches" not in k}, p),
    ),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_a_network_is_built_with_the_weights_in_its_file(way: str, tmp_path: Path) -> None:
    name, save = WRITTEN[way]
    pretrained = network()
    save(pretrained.state_dict(), tmp_path / name)
    options = {**OPTIONS, "weights": str(tmp_path / name)}
    check_backbone("conv", options)
    check_weights_file("conv", options)
    assert same(build_backbone("conv", SHAPE, 3, **options), pretrained)
    assert not same(draw_backbone("conv", SHAPE, 3, options), pretrained)


def own_network(input_shape: tuple[int, int, int], n_classes: int, **options: Any) -> nn.Module:
    assert "weights" not in options
    return nn.Sequential(nn.Flatten(), nn.Linear(128, n_classes))


def loads_itself(input_shape: Any, n_classes: int, weights: str | None = None) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, n_classes)).append(nn.Identity()).eval()


def test_a_function_gets_weights_where_it_has_such_a_parameter(tmp_path: Path) -> None:
    pretrained = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    save_file(pretrained.state_dict(), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    assert same(build_backbone(f"{__name__}:own_network", SHAPE, 3, weights=weights), pretrained)
    own = build_backbone(f"{__name__}:loads_itself", SHAPE, 3, weights="anything it likes")
    assert isinstance(own, nn.Sequential) and len(own) == 3


@pytest.mark.parametrize("weights", [3, "", ["w.pt"]])
def test_weights_that_are_no_name_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="expected the name of a file, or of weights, got"):
        check_backbone("conv", {"weights": weights})


def test_only_the_networks_of_a_library_have_weights_to_download() -> None:
    with pytest.raises(ValueError, match="'pretrained' is no file, and only networks of timm"):
        check_backbone("conv", {"weights": "pretrained"})


def test_a_missing_file_is_named_with_the_nearest_and_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resnet50.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:
        check_weights_file("conv", {"weights": "resnet5.safetensors"})
    assert "there is no file 'resnet5.safetensors'" in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "Did you mean 'resnet50.safetensors'?" in str(raised.value)


class Planted:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran.txt"),)


def test_a_file_that_would_run_code_is_refused_and_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Planted()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds more than weights, which may run code"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran.txt").exists()


def _write_whole(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def _write_numbers(path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.1}, path)


def _write_noise(path: Path) -> None:
    path.write_bytes(b"no weights at all")


@pytest.mark.parametrize("write", [_write_whole, _write_numbers, _write_noise])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_of_something_else_is_refused(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"weights: .*{name}"):
        read_weights(tmp_path / name)


def test_what_does_not_fit_is_counted_and_some_of_it_named() -> None:
    tensors = network(channels=(4, 7), batch_norm=False).state_dict()
    with pytest.raises(ValueError) as raised:
        put_into(network(), tensors, "w.pt", 3)
    said = str(raised.value)
    assert said.startswith("w.pt does not fit Sequential: it lacks 8 of 16 (")
    assert "it has 2 that the network lacks (conv1.bias, conv2.bias)" in said
    assert "2 are of another shape (conv2.weight (7, 4, 3, 3), here (6, 4, 3, 3), " in said
    assert "norm1.running_mean" in said and "norm2.weight" not in said


def test_where_only_the_classes_differ_the_last_layer_is_named_with_what_to_do() -> None:
    with pytest.raises(ValueError) as raised:
        put_into(network(), network(10).state_dict(), "w.pt", 3)
    assert str(raised.value).startswith(
        "w.pt has 10 classes, the data set 3: only the last layer, 'classifier', differs. "
    )
    assert "training.epochs of 1 or more" in str(raised.value)


def test_a_last_layer_of_other_classes_is_drawn_anew_where_it_is_to_be_trained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    into, pretrained = network(), network(10)
    drawn = into.get_submodule("classifier").state_dict()["weight"].clone()
    with caplog.at_level(logging.WARNING):
        put_into(into, pretrained.state_dict(), "w.pt", 3, new_head=True)
    assert torch.equal(into.state_dict()["classifier.weight"], drawn)
    assert torch.equal(into.state_dict()["conv1.weight"], pretrained.state_dict()["conv1.weight"])
    assert "the last layer, 'classifier', is drawn anew" in caplog.text


def test_a_file_of_the_same_content_has_the_same_digest_and_a_changed_one_another(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    for path in (one, other):
        path.write_bytes(b"weights")
    before = file_digest(one)
    assert before == file_digest(other)
    one.write_bytes(b"other weights")
    assert file_digest(one) != before
