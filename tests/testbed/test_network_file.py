"""Networks on disk: whole or damaged, dense or with channels removed."""

import copy
import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from testbed.backbones import build_backbone
from testbed.network_file import load_network, save_network
from testbed.tensor_file import DamagedFileError, read_tensors, write_tensors


class Mixed(nn.Module):
    """Every kind of layer that can be resized."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, kernel, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.widening = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.grouped = nn.Conv2d(2 * width, width, 3, padding=1, groups=2)
        self.hidden = nn.Linear(width, width)
        self.hidden_norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        x = self.grouped(self.widening(self.depthwise(x)).relu()).mean(dim=(2, 3))
        logits: Tensor = self.classifier(self.hidden_norm(self.hidden(x)).relu())
        return logits


def used(network: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> nn.Module:
    """After a forward in training mode, so that batch norms hold more than zeros and ones."""
    network.train()(torch.randn(4, *shape))
    return network.eval()


def assert_same_answers(
    a: nn.Module, b: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)
) -> None:
    images = torch.randn(4, *shape)
    assert torch.equal(a(images), b(images))


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    network = used(tiny.network(), (2, 8, 8))
    save_network(network, tmp_path / "new" / "folder" / "network.safetensors")
    dense = tiny.network().eval()
    before = copy.deepcopy(dense.state_dict())
    loaded = load_network(tmp_path / "new" / "folder" / "network.safetensors", dense)
    assert_same_answers(loaded, network, (2, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("width", [2, 4, 10])
def test_layers_get_the_sizes_in_the_file(tmp_path: Path, width: int) -> None:
    torch.manual_seed(0)
    narrow = used(Mixed(width))
    save_network(narrow, tmp_path / "narrow")
    loaded = load_network(tmp_path / "narrow", Mixed(10)).eval()
    assert_same_answers(loaded, narrow)
    assert str(loaded) == str(narrow)  # in_channels, groups, num_features and all


def test_channels_removed_by_hand_are_removed_in_what_is_loaded(tmp_path: Path) -> None:
    """Conv 1 of a backbone loses channels 1 and 4: the same as its dense copy with them at zero."""
    dense = used(build_backbone("conv", (3, 8, 8), 5, channels=(6, 8), hidden=7))
    convs = [name for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in dense.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept = torch.tensor([0, 2, 3, 5])
    tensors = dict(dense.state_dict())
    for name in (f"{convs[0]}.weight", f"{convs[0]}.bias", *_vectors(norms[0])):
        if name in tensors:
            tensors[name] = tensors[name][kept]
    second = f"{convs[1]}.weight"
    tensors[second] = tensors[second][:, kept]
    write_tensors(tmp_path / "small", tensors, {})
    silenced = copy.deepcopy(dense)
    silenced.get_parameter(second).data[:, [1, 4]] = 0
    loaded = load_network(tmp_path / "small", dense)
    assert loaded.get_submodule(convs[0]).out_channels == 4
    assert loaded.get_submodule(convs[1]).in_channels == 4
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(loaded(images), silenced(images))


def _vectors(norm: str) -> list[str]:
    return [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]


def test_a_loaded_network_trains_what_the_dense_one_does(tmp_path: Path) -> None:
    save_network(Mixed(4), tmp_path / "narrow")
    dense = Mixed(10)
    dense.stem.weight.requires_grad_(False)
    loaded = load_network(tmp_path / "narrow", dense)
    assert not loaded.get_submodule("stem").weight.requires_grad
    assert loaded.get_submodule("hidden").weight.requires_grad


@pytest.mark.parametrize(
    ("saved", "dense", "layer"),
    [
        (nn.Sequential(nn.LayerNorm(5)), nn.Sequential(nn.LayerNorm(4)), "'0' (LayerNorm)"),
        (nn.Sequential(nn.PReLU(5)), nn.Sequential(nn.PReLU(4)), "'0' (PReLU)"),
        (Mixed(4, kernel=1), Mixed(4), "'stem' (Conv2d)"),
        (nn.ConvTranspose2d(2, 3, 2), nn.ConvTranspose2d(3, 3, 3), "ConvTranspose2d"),
    ],
)
def test_a_layer_that_cannot_be_resized_is_named(
    tmp_path: Path, saved: nn.Module, dense: nn.Module, layer: str
) -> None:
    save_network(saved, tmp_path / "file")
    with pytest.raises(ValueError, match="Cannot give layer") as info:
        load_network(tmp_path / "file", dense)
    assert layer in str(info.value)


def test_a_bias_that_does_not_fit_its_weight_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"weight": torch.ones(2, 3), "bias": torch.ones(4)}, {})
    with pytest.raises(ValueError, match=r"Cannot give layer 'Linear'"):
        load_network(tmp_path / "file", nn.Linear(3, 3))


class Scaled(nn.Linear):
    """A layer that has had one of its buffers from some day on."""

    later_buffers = ("scale",)

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("scale", torch.ones(2))


@pytest.mark.parametrize("prefix", ["", "0."])
def test_a_file_may_lack_what_came_later(tmp_path: Path, prefix: str) -> None:
    network = nn.Sequential(Scaled()) if prefix else Scaled()
    weights = {f"{prefix}weight": torch.ones(2, 2), f"{prefix}bias": torch.ones(2)}
    write_tensors(tmp_path / "before", weights, {})
    loaded = load_network(tmp_path / "before", network).state_dict()
    assert loaded[f"{prefix}scale"].tolist() == [1, 1]
    assert loaded[f"{prefix}bias"].tolist() == [1, 1]
    write_tensors(tmp_path / "after", {**weights, f"{prefix}scale": torch.zeros(2)}, {})
    loaded = load_network(tmp_path / "after", network).state_dict()
    assert loaded[f"{prefix}scale"].tolist() == [0, 0]


def test_the_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_network(nn.Sequential(nn.Linear(2, 2)), tmp_path / "file")
    with pytest.raises(ValueError, match=r"lacks bias, weight"):
        load_network(tmp_path / "file", nn.Linear(2, 2))


def test_tied_weights_and_any_memory_layout_are_kept(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    scalar = torch.tensor(3)
    write_tensors(
        tmp_path / "file",
        {"a": weight, "b": weight, "n": scalar, "half": weight[:, 0].bfloat16()},
        {"text": "'ü"},
    )
    tensors, texts = read_tensors(tmp_path / "file")
    assert texts == {"text": "'ü"}
    assert torch.equal(tensors["a"], weight) and torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["n"], scalar)
    assert torch.equal(tensors["half"], weight[:, 0].bfloat16())


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"a": torch.arange(6.0), "n": torch.tensor(2)}, {"history": "[0.5]"})
    content = path.read_bytes()
    tensors, texts = read_tensors(path)
    header = 8 + int.from_bytes(content[:8], "little")
    assert json.loads(content[8:header])["__metadata__"]["history"] == "[0.5]"
    for position in range(len(content)):
        for bit in (0, 3, 5, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read, said = read_tensors(path)
            except DamagedFileError:
                continue
            # What is left are bits that say nothing, such as the padding of the header.
            assert said == texts and read.keys() == tensors.keys()
            assert all(torch.equal(read[name], tensors[name]) for name in tensors)
            assert position < header
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"a": torch.ones(2)}, {})
    monkeypatch.setattr("os.fsync", _full_disk)
    with pytest.raises(OSError, match="disk is full"):
        write_tensors(path, {"a": torch.zeros(2)}, {})
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def _full_disk(descriptor: int) -> None:
    raise OSError("disk is full")
