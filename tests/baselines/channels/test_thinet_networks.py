"""ThiNet prunes networks: layer by layer, within its budget of epochs."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import ValidationError
from test_thinet import EVERY_OUTPUT, loop_choice
from torch import Tensor, nn

from baselines import ThiNet
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import remove_channels
from testbed.data import Splits, normalise
from testbed.method import Run


def images(data: Splits) -> Tensor:
    return normalise(data.train.pixels, data.mean, data.std)


def seen_at(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer of the network puts out."""
    caught: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda _, __, out: caught.append(out))
    with torch.no_grad():
        network.eval()(x)
    hook.remove()
    return caught[0]


def kept_of(smaller: nn.Module, dense: nn.Module, layer: str) -> list[int]:
    """Which filters of a layer stayed, if its inputs did."""
    filters = [f.flatten().tolist() for f in dense.get_parameter(f"{layer}.weight")]
    return [filters.index(f.flatten().tolist()) for f in smaller.get_parameter(f"{layer}.weight")]


@pytest.mark.parametrize("keep_ratio", [0.25, 0.5, 0.75])
def test_the_next_layer_is_nearer_to_what_it_was_than_without_scales(keep_ratio: float) -> None:
    data, dense = tiny.splits(), tiny.network("residual")
    method = ThiNet(keep_ratio=keep_ratio, positions=EVERY_OUTPUT)
    smaller = method.prune(dense, data, tiny.run(0))
    kept = kept_of(smaller, dense, "conv1")
    assert len(kept) == 8 * keep_ratio
    x = images(data)
    gone = {"conv1": [c for c in range(8) if c not in kept]}
    unscaled = remove_channels(dense, x[:2], channel_groups(dense, x[:2]), gone)
    target = seen_at(dense, "conv2", x)
    scaled, without = (
        (seen_at(network, "conv2", x) - target).square().sum() for network in (smaller, unscaled)
    )
    assert scaled < 0.99 * without  # they are not equal here, so the scales are in the weights
    # The best there is: least squares from torch over contributions that are computed here.
    inputs = seen_at(unscaled, "norm1", x).relu()
    parts = torch.stack(
        [
            F.conv2d(inputs[:, [i]], unscaled.conv2.weight[:, [i]], padding=1).flatten()
            for i in range(len(kept))
        ],
        dim=1,
    ).double()
    wanted = (target - dense.conv2.bias[:, None, None]).flatten()[:, None].double()
    best = torch.linalg.lstsq(parts, wanted).solution
    assert scaled.item() == pytest.approx((parts @ best - wanted).square().sum().item(), rel=1e-4)


def dead(network: nn.Module, channels: dict[str, list[int]]) -> nn.Module:
    """Norms put out zero for these channels, and something for the others."""
    for norm, off in channels.items():
        layer = network.get_submodule(norm)
        layer.bias.data.fill_(0.3)
        layer.weight.data[off] = 0
        layer.bias.data[off] = 0
    return network


def test_channels_that_put_out_zero_are_exactly_those_that_go() -> None:
    data = tiny.splits()
    dense = dead(tiny.network(), {"norm1": [1, 2, 5], "norm2": [0, 3, 4, 7]})
    smaller = ThiNet(keep_ratio=0.5).prune(dense, data, tiny.run(0))
    assert kept_of(smaller, dense, "conv1") == [0, 3, 4]
    assert (smaller.norm1.weight != 0).all() and (smaller.norm2.weight != 0).all()
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(images(data)), dense.eval()(images(data)))


def test_a_later_layer_is_chosen_by_what_earlier_ones_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def noting(run: Run, network: nn.Module, data: Splits, epochs: int) -> None:
        seen.append((network.conv1.out_channels, network.conv2.out_channels))

    monkeypatch.setattr(Run, "fine_tune", noting)
    ThiNet(rounds=2, keep_ratio=0.25).prune(tiny.network(), tiny.splits(), tiny.run(2))
    assert seen == [(3, 8), (3, 4), (2, 4), (2, 2)]


class Branching(nn.Module):
    """Two layers read `first`: one alone, one beside `second`'s channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(6, 5, 3, padding=1)
        self.right = nn.Conv2d(10, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).relu(), self.second(x).relu()
        right = self.right(torch.cat([second, first], dim=1))
        logits: Tensor = self.fc((self.left(first) + right).relu().mean(dim=(2, 3)))
        return logits


def test_where_several_layers_read_a_channel_all_of_them_decide() -> None:
    torch.manual_seed(0)
    dense, data = Branching(), tiny.splits()
    x = images(data)
    first = seen_at(dense, "first", x).relu()
    samples = [
        torch.stack(
            [
                F.conv2d(first[:, [c]], weight[:, [c]], padding=1).flatten().detach()
                for c in range(6)
            ],
            dim=1,
        ).double()
        for weight in (dense.left.weight, dense.right.weight[:, 4:])
    ]
    # Each as a share of its own squares, so that none outweighs the other.
    shares = [each / each.square().sum().sqrt() for each in samples]
    expected = loop_choice(torch.cat(shares), 3)
    method = ThiNet(keep_ratio=0.5, positions=EVERY_OUTPUT)
    smaller = method.prune(dense, data, tiny.run(0))
    kept = [c for c in range(6) if c not in expected]
    assert kept_of(smaller, dense, "first") == kept
    for reader, contributions in zip(("left", "right"), samples, strict=True):
        scales = torch.linalg.lstsq(
            contributions[:, kept], contributions.sum(dim=1, keepdim=True)
        ).solution.squeeze(1)
        inputs = kept if reader == "left" else [4 + c for c in kept]
        before = dense.get_parameter(f"{reader}.weight")[:, inputs]
        after = smaller.get_parameter(f"{reader}.weight")[:, -3:]
        torch.testing.assert_close(after, before * scales.float()[:, None, None], rtol=1e-3, atol=0)


def test_linear_layers_lose_units_only_if_asked() -> None:
    data = tiny.splits()
    without = ThiNet().prune(tiny.network(), data, tiny.run(0))
    assert without.hidden.out_features == 10
    smaller = ThiNet(linear_layers=True).prune(tiny.network(), data, tiny.run(2))
    assert smaller.hidden.out_features == 5 and smaller.classifier.in_features == 5
    assert smaller.classifier.out_features == 3
    assert smaller(images(data)).shape == (96, 3)


def test_rounds_come_to_the_same_size_as_one_and_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    sizes = [
        [
            w.shape
            for w in ThiNet(keep_ratio=0.4, rounds=rounds)
            .prune(tiny.network(), tiny.splits(), tiny.run(3))
            .state_dict()
            .values()
        ]
        for rounds in (1, 3)
    ]
    assert sizes[0] == sizes[1]
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_keep_ratio_of_one_only_fine_tunes() -> None:
    data, dense = tiny.splits(), tiny.network()
    whole = ThiNet(keep_ratio=1).prune(dense, data, tiny.run(0))
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in dense.state_dict().items())


class StoppedError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("stop_at", range(4))
def test_a_stopped_run_goes_on_and_ends_where_it_would_have(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(folder: Path) -> tuple[nn.Module, Run]:
        run = tiny.run(4)
        run.folder = folder
        method = ThiNet(keep_ratio=0.3, rounds=2, epochs_per_layer=1)
        return method.prune(tiny.network(), tiny.splits(), run), run

    undisturbed, _ = prune(tmp_path / "undisturbed")
    calls: list[int] = []
    fine_tune = Run.fine_tune

    def stopping(run: Run, *arguments: Any) -> None:
        calls.append(run.epochs_spent)
        fine_tune(run, *arguments)
        if len(calls) == stop_at + 1:
            raise StoppedError

    monkeypatch.setattr(Run, "fine_tune", stopping)
    with pytest.raises(StoppedError):
        prune(tmp_path / "stopped")
    network, run = prune(tmp_path / "stopped")
    assert calls == [*range(stop_at + 1), *range(stop_at, 4)]  # only the layer at work is done anew
    assert run.epochs_spent == 4
    expected = undisturbed.state_dict()
    assert expected.keys() == network.state_dict().keys()
    assert all(torch.equal(expected[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 0, [0, 0]),
        ({}, 3, [1, 2]),
        ({}, 4, [2, 2]),
        ({"rounds": 2}, 5, [1, 1, 1, 2]),
        ({"epochs_per_layer": 0}, 5, [0, 5]),
        ({"epochs_per_layer": 2}, 5, [2, 3]),
        ({"epochs_per_layer": 1, "rounds": 2}, 5, [1, 1, 1, 2]),
    ],
)
def test_epochs_follow_each_layer_and_the_last_gets_the_rest(
    options: dict[str, int], epochs: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Run, "fine_tune", lambda run, network, data, n: spent.append(n))
    ThiNet(**options).prune(tiny.network(), tiny.splits(), tiny.run(epochs))
    assert spent == expected


def test_half_of_the_epochs_are_spread_evenly_where_layers_outnumber_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Run, "fine_tune", lambda run, network, data, n: spent.append(n))
    model = tiny.build_backbone("conv", (2, 8, 8), 3, channels=(4,) * 7, hidden=10)
    ThiNet().prune(model, tiny.splits(), tiny.run(5))
    assert spent == [0, 0, 1, 0, 0, 1, 3]


def test_epochs_that_are_not_there_are_refused_when_options_are_checked_and_when_they_run() -> None:
    context = {"fine_tuning": tiny.run(3).fine_tuning}
    options = {"epochs_per_layer": 3}
    assert ThiNet.model_validate(options, context=context).epochs_per_layer == 3
    with pytest.raises(ValidationError, match="at most 3"):
        ThiNet.model_validate({"epochs_per_layer": 4}, context=context)
    with pytest.raises(ValidationError, match=r"epochs_per_layer 2, .* 1 of fine_tuning.epochs 3"):
        ThiNet.model_validate({"rounds": 2, "epochs_per_layer": 2}, context=context)
    with pytest.raises(ValueError, match="for 2 layers, is more than a round has: 3"):
        ThiNet(epochs_per_layer=2).prune(tiny.network(), tiny.splits(), tiny.run(3))


@pytest.mark.parametrize(
    "options",
    [
        {"keep_ratio": 0},
        {"keep_ratio": 1.1},
        {"keep_ratio": 0.5, "keep_multiplications": 0.5},
        {"images": 0},
        {"positions": 0},
        {"epochs_per_layer": -1},
        {"rounds": 0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ThiNet(**options)


def test_a_ratio_that_removes_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="removes nothing"):
        ThiNet(keep_ratio=0.97).prune(tiny.network(), tiny.splits(), tiny.run(0))


def test_too_few_samples_for_least_squares_are_refused_before_any_work() -> None:
    run = tiny.run(3)
    model = tiny.build_backbone("conv", (2, 8, 8), 3, channels=(6, 16), hidden=3)
    with pytest.raises(ValueError, match=r"'conv2' has channels, 16; got 5 images x 3 outputs"):
        ThiNet(images=5).prune(model, tiny.splits(), run)
    assert run.epochs_spent == 0


def test_where_no_reader_can_be_sampled_the_smallest_norms_go() -> None:
    class Normed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x).mean(dim=(2, 3))
            return logits

    torch.manual_seed(0)
    reader = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 3, 3))
    model = Normed(nn.Conv2d(2, 6, 3), nn.ReLU(), reader)
    smaller = ThiNet().prune(model, tiny.splits(), tiny.run(0))
    largest = model[0].weight.abs().sum(dim=(1, 2, 3)).topk(3).indices.sort().values
    assert kept_of(smaller, model, "0") == largest.tolist()


def test_a_network_that_has_diverged_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(_: Run, network: Any, *others: Any) -> None:
        network.norm2.bias.data[2] = torch.inf

    monkeypatch.setattr(Run, "fine_tune", diverge)
    with pytest.raises(ValueError, match="layer 'conv2' puts out is not finite"):
        ThiNet().prune(tiny.network(), tiny.splits(), tiny.run(0))
