"""Accuracies of masks: as of the smaller networks themselves, with batch norm estimated anew."""

import copy
from typing import Any

import pytest
import tiny
import torch
from small_networks import Net
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from baselines.channels import batch_norm_statistics
from baselines.channels.batch_norm_statistics import (
    FEWEST,
    estimate_statistics,
    normalised_batches,
    statistics_images,
)
from baselines.channels.channel_groups import ChannelGroups, channel_groups
from baselines.channels.channel_removal import remove_channels
from baselines.channels.contributions import Sampler
from baselines.channels.refit import Refit
from baselines.channels.reward_evaluation import CutNetwork, WholeNetwork, evaluation_of_masks
from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.data import Images, Splits, normalise
from testbed.prediction import evaluate

CPU = torch.device("cpu")


class Block(nn.Module):
    """Two convs with a batch norm each and a sum around them, on what is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.inner1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.inner2 = nn.Conv2d(6, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        outer = self.relu(self.conv(images))
        inner = self.norm2(self.inner2(self.relu(self.norm1(self.inner1(outer)))))
        logits: Tensor = self.classifier(self.relu(inner.add_(outer)).mean(dim=(2, 3)))
        return logits


class Spoiling(Block):
    """Writes into what bypasses the pruned conv, after that conv's reader ran."""

    def forward(self, images: Tensor) -> Tensor:
        outer = self.relu(self.conv(images))
        outer.add_(self.norm2(self.inner2(self.relu(self.norm1(self.inner1(outer))))))
        logits: Tensor = self.classifier(outer.mean(dim=(2, 3)))
        return logits


class Doubting(Block):
    """Its forward looks at values, so it cannot be traced as a graph."""

    def forward(self, images: Tensor) -> Tensor:
        if images.abs().max() > 1e6:
            return images.new_zeros(len(images), 3)
        return super().forward(images)


class Derived(nn.BatchNorm2d):
    """As other libraries derive theirs, with an activation."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Normed(nn.Module):
    """A batch norm between conv and reader, one after the reader, and one after a sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.before = nn.BatchNorm2d(6)
        self.reader = nn.Conv2d(6, 4, 3, padding=1)
        self.norm = Derived(4) if kind == "derived" else nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.after_sum = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 3)
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.reader(self.before(self.conv(images)).relu())).relu()
        x = self.inner(x) + x
        x = self.norm(x) if self.kind == "shared" else self.after_sum(x)
        logits: Tensor = self.classifier(x.relu().mean(dim=(2, 3)))
        return logits


class Encoder(nn.Module):
    """Patches and a transformer's encoder layer: its norms look at all channels together."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 12, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(12, 4, 10, dropout=0, batch_first=True)
        self.classifier = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.block(self.patch(images).flatten(2).mT)
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits


def with_statistics(network: nn.Module) -> nn.Module:
    """Weights and batch norms that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(4)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor += 0.3 * torch.rand(tensor.shape, generator=generator)
            if "var" not in name:
                tensor -= 0.15
    return network.eval()


def made(kind: str) -> nn.Module:
    torch.manual_seed(3)
    kinds = {"block": Block, "spoiling": Spoiling, "doubting": Doubting, "encoder": Encoder}
    if kind in kinds:
        return with_statistics(kinds[kind]())
    if kind == "resnet18":
        return with_statistics(build_backbone("resnet18", (2, 8, 8), 3, width=0.1))
    if kind in ("normed", "derived", "shared"):
        return with_statistics(Normed(kind))
    return with_statistics(tiny.network(kind))


def with_own_statistics(network: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy, by torch's own function, which has all of a network in training mode."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    update_bn(batches, network)
    return network.eval()


def refit_of(network: nn.Module, groups: ChannelGroups, name: str, data: Splits) -> Refit:
    sampler = Sampler(data, CPU, "float32", torch.contiguous_format, 50, 10)
    generator = torch.Generator().manual_seed(0)
    return Refit(network, {name: groups[name]}, sampler, sampler.drawn(generator), generator)


MASKED = [
    ("conv", "conv1", CutNetwork),
    ("conv", "conv2", CutNetwork),
    ("residual", "conv1", CutNetwork),
    ("resnet18", "stage2.0.conv1", CutNetwork),
    ("block", "inner1", CutNetwork),
    ("spoiling", "inner1", WholeNetwork),
    ("doubting", "inner1", WholeNetwork),
    ("block", "conv", CutNetwork),  # the outer channels, which the block adds to
    ("resnet18", "stage2.0.conv2", CutNetwork),
    ("encoder", "block.self_attn.in_proj", WholeNetwork),
    ("encoder", "block.linear1", WholeNetwork),
    ("encoder", "patch", WholeNetwork),
    ("normed", "conv", CutNetwork),
    ("derived", "conv", CutNetwork),
    ("shared", "conv", CutNetwork),  # one batch norm in two places
]


@pytest.mark.parametrize("refitted", [False, True])
@pytest.mark.parametrize(("kind", "layer", "way"), MASKED)
def test_masks_are_judged_as_the_smaller_networks_with_statistics_of_their_own(
    kind: str, layer: str, way: type, refitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_norm_statistics, "BATCH_SIZE", 40)  # several, the last smaller
    network: Any = made(kind)
    data = tiny.splits(n_validation=100)
    inputs = normalise(data.validation.pixels, data.mean, data.std)
    statistics = statistics_images(data, 100, seed=1)
    batches = normalised_batches(network, statistics, data, CPU)
    assert [len(batch) for batch in batches] == [32, 32]
    with torch.no_grad():
        # So that no class is always the answer.
        network.classifier.bias -= with_own_statistics(network, batches)(inputs).mean(dim=0)
        # The labels are what the whole network says, so that a wrong mask shows.
        answers = with_own_statistics(network, batches)(inputs).argmax(dim=1)
    images = Images(data.validation.pixels, answers)
    groups = channel_groups(network, inputs[:2], scope="all")
    refit = refit_of(network, groups, layer, data) if refitted else None
    judged = network, groups, layer, images, statistics, data
    evaluation = evaluation_of_masks(*judged, device=CPU, precision="float32", refit=refit)
    assert type(evaluation) is way
    before = copy.deepcopy(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        masks = torch.rand(6, groups[layer].channels, generator=generator) < 0.5
        masks[:, 0] |= ~masks.any(dim=1)
        masks[-1] = True
        expected = []
        for mask in masks:
            removed = {layer: (~mask).nonzero().flatten().tolist()}
            whole = copy.deepcopy(network)
            if refit is not None:
                refit(whole, removed)
            smaller = remove_channels(whole, inputs[:2], groups, removed)
            smaller = with_own_statistics(smaller, batches)
            expected.append(evaluate(smaller, images, data, device=CPU, precision="float32"))
        assert evaluation(masks) == pytest.approx(expected)
        assert evaluation(masks)[-1] == 1.0 and len(set(expected)) > 1
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    nothing_to_estimate = kind in ("residual", "encoder") or (kind, layer) == ("conv", "conv2")
    assert evaluation.images_per_mask == (100 if nothing_to_estimate else 164)


def test_statistics_are_the_means_and_variances_of_what_the_masked_network_computes() -> None:
    """In closed form, of one batch: layer by layer, each normalised by its own."""
    network: Any = build_backbone("conv", (2, 8, 8), 3, channels=(4, 5, 6), hidden=10).eval()
    images = torch.randn(9, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    estimate_statistics(network, [images])
    x = images
    with torch.no_grad():
        for number in (1, 2, 3):
            x = network.get_submodule(f"conv{number}")(x)
            norm = network.get_submodule(f"norm{number}")
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
            n = x.numel() / x.shape[1]
            torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(norm.running_var, variance * n / (n - 1))
            assert norm.momentum == 0.1 and not norm.training
            x = (x - mean[:, None, None]) / (variance + norm.eps).sqrt()[:, None, None]
            x = x.relu()


def one_signal(batch_norm: bool = True) -> nn.Module:
    """Of its two channels one is the image, the other a constant, which a batch norm takes off."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.reader(net.writer(x))
        x = net.norm(x) if batch_norm else x - 20
        return torch.cat([x, -x], dim=1).mean(dim=(2, 3))

    norms = {"norm": nn.BatchNorm2d(1)} if batch_norm else {}
    net: Any = Net(forward, writer=nn.Conv2d(1, 2, 1), reader=nn.Conv2d(2, 1, 1), **norms)
    with torch.no_grad():
        net.writer.weight[:] = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
        net.writer.bias[:] = torch.tensor([0.0, 20.0])
        net.reader.weight.fill_(1.0)
        net.reader.bias.zero_()
        if batch_norm:
            net.norm.running_mean.fill_(20.0)
    return net.eval()


def bright_or_dark(n: int = 64) -> Splits:
    """Two classes of images of one channel."""
    labels = torch.arange(n) % 2
    noise = torch.randint(0, 60, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 180 * (1 - labels).view(-1, 1, 1, 1)).to(torch.uint8)
    images = Images(pixels, labels)
    return Splits(images, images, ("bright", "dark"), Augmentation(0, False), (0.47,), (0.4,))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_channel_that_batch_norm_takes_off_can_go_and_stale_statistics_hide_it(
    batch_norm: bool,
) -> None:
    network, data = one_signal(batch_norm), bright_or_dark()
    inputs = normalise(data.validation.pixels, data.mean, data.std)
    groups = channel_groups(network, inputs[:2])
    masks = torch.tensor([[True, True], [True, False], [False, True]])
    stale = [
        evaluate(
            remove_channels(
                network, inputs[:2], groups, {"writer": (~mask).nonzero().flatten().tolist()}
            ),
            data.validation,
            data,
            device=CPU,
            precision="float32",
        )
        for mask in masks
    ]
    assert stale == [1.0, 0.5, 0.5]  # the constant seems to matter as much as the image
    evaluation = evaluation_of_masks(
        network,
        groups,
        "writer",
        data.validation,
        statistics_images(data, 64, seed=0),
        data,
        device=CPU,
        precision="float32",
    )
    assert evaluation(masks) == ([1.0, 1.0, 0.5] if batch_norm else stale)
    assert evaluation.images_per_mask == 64 * (2 if batch_norm else 1)


def test_statistics_images_are_augmented_training_images_few_beside_those_that_judge() -> None:
    data = tiny.splits(n_train=200)
    known = {image.numpy().tobytes() for image in data.train.pixels}
    sizes = [len(statistics_images(data, n, seed=0)) for n in (1, 1200, 5000)]
    assert sizes == [FEWEST, 75, 200]
    some = statistics_images(data, 1200, seed=0)
    shifted = [image.numpy().tobytes() not in known for image in some.pixels]
    assert 0.7 < sum(shifted) / len(shifted) < 1  # by (0, 0) one in nine is not
    again, other = (statistics_images(data, 1200, seed=seed).pixels for seed in (0, 1))
    assert torch.equal(some.pixels, again) and not torch.equal(some.pixels, other)
