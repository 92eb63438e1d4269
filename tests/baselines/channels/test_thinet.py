"""ThiNet: what it samples, which channels it chooses, how it scales the others, and its budget."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import ValidationError
from torch import Tensor, nn

from baselines import ThiNet
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import remove_channels
from baselines.channels.contributions import (
    AllSeenError,
    Product,
    Products,
    gram_matrix,
    inputs_by_channel,
    sampled_contributions,
)
from baselines.channels.dependency.weights import Weights
from baselines.channels.thinet import greedy_choice, least_squares_scales
from testbed.data import Splits, normalise
from testbed.method import Run

EVERY_OUTPUT = 10**6  # more positions than a tiny layer has outputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_contributions(kind: str, seed: int) -> Tensor:
    """(60, 9) float64, with the ties and cancellations that real layers have."""
    values = torch.randn(60, 9, generator=generator(seed), dtype=torch.float64)
    if kind == "correlated":
        return values @ torch.randn(9, 9, generator=generator(seed + 50), dtype=torch.float64)
    if kind == "whole numbers":
        return values.round()
    if kind == "duplicates":
        return values[:, [0, 1, 2, 1, 0, 3, 2, 1, 3]]
    if kind == "opposites":
        return torch.cat([values[:, :4], -values[:, :4], values[:, :1]], dim=1)
    return values


def loop_choice(contributions: Tensor, n: int) -> list[int]:
    """The report's loop: each candidate's value is summed over the samples anew."""
    chosen: list[int] = []
    for _ in range(n):
        values = {
            c: contributions[:, [*chosen, c]].sum(dim=1).square().sum().item()
            for c in range(contributions.shape[1])
            if c not in chosen
        }
        # As far as float64 can tell, in which the order of summation matters for the last bits.
        tie = min(values.values()) + 1e-9
        chosen.append(next(c for c, value in values.items() if value <= tie))
    return chosen


def left_over(contributions: Tensor, removed: tuple[int, ...] | list[int]) -> float:
    return contributions[:, list(removed)].sum(dim=1).square().sum().item()


KINDS = ["plain", "correlated", "whole numbers", "duplicates", "opposites"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_that_of_the_reports_loop(kind: str, seed: int) -> None:
    contributions = random_contributions(kind, seed)
    for n in range(10):
        assert greedy_choice(gram_matrix(contributions), n) == loop_choice(contributions, n)


@pytest.mark.parametrize("seed", range(6))
def test_copies_of_a_channel_are_ties_whatever_rounding_makes_of_them(seed: int) -> None:
    # Their entries in the Gram matrix differ in the last bits; the loop's sums do not.
    copied = torch.randint(0, 20, (41,), generator=generator(seed))
    values = torch.randn(499, 20, generator=generator(seed + 50), dtype=torch.float64)[:, copied]
    assert greedy_choice(gram_matrix(values), 20) == loop_choice(values, 20)


def test_of_equal_channels_the_lowest_index_goes_first() -> None:
    one = torch.randn(50, 1, generator=generator(), dtype=torch.float64)
    assert greedy_choice(gram_matrix(torch.zeros(5, 70)), 4) == [0, 1, 2, 3]
    assert greedy_choice(gram_matrix(one.expand(50, 70)), 3) == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_never_better_than_the_best_of_all_subsets(kind: str) -> None:
    contributions = random_contributions(kind, 7)
    for n in range(1, 9):
        best = min(left_over(contributions, t) for t in itertools.combinations(range(9), n))
        found = greedy_choice(gram_matrix(contributions), n)
        assert len(set(found)) == n
        assert left_over(contributions, found) >= best - 1e-9


def test_where_no_two_channels_meet_the_choice_is_the_best_subset() -> None:
    sizes = torch.tensor([3.0, 0.5, 2.0, 7.0, 1.0, 0.1])
    contributions = torch.diag(sizes).double()
    for n in range(1, 6):
        best = min(itertools.combinations(range(6), n), key=lambda t: left_over(contributions, t))
        assert sorted(greedy_choice(gram_matrix(contributions), n)) == list(best)


@pytest.mark.parametrize("seed", range(5))
def test_scales_are_those_of_least_squares_over_the_samples(seed: int) -> None:
    contributions = random_contributions("correlated", seed)
    removed = [1, 4, 6]
    kept = [0, 2, 3, 5, 7, 8]
    scales = least_squares_scales(gram_matrix(contributions), removed)
    expected = torch.linalg.lstsq(
        contributions[:, kept], contributions.sum(dim=1, keepdim=True)
    ).solution.squeeze(1)
    np.testing.assert_allclose(scales[kept], expected.numpy(), rtol=1e-6)
    assert (scales[removed] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scales_never_make_the_error_grow(kind: str) -> None:
    for seed in range(5):
        contributions = random_contributions(kind, seed)
        for removed in ([0], [0, 1, 2, 3], [1, 3, 5, 7], list(range(8))):
            scales = torch.from_numpy(least_squares_scales(gram_matrix(contributions), removed))
            kept = [c for c in range(9) if c not in removed]
            off = contributions.sum(dim=1) - contributions[:, kept] @ scales[kept]
            assert off.square().sum() <= left_over(contributions, removed) + 1e-9
            assert scales.isfinite().all() and scales.abs().max() < 100


def test_where_samples_leave_a_choice_scales_stay_near_one() -> None:
    one, other = torch.randn(2, 40, 1, generator=generator(), dtype=torch.float64)
    contributions = torch.cat([one, one, one, other, torch.zeros(40, 1)], dim=1)
    scales = least_squares_scales(gram_matrix(contributions), [0])
    np.testing.assert_allclose(scales, [1, 1.5, 1.5, 1, 1], atol=1e-9)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # layer, its input, how many of its inputs come from one channel
    "conv": (lambda: nn.Conv2d(4, 5, 3, padding=1), (6, 4, 7, 5), 1),
    "strided": (lambda: nn.Conv2d(4, 3, (3, 2), (2, 1), dilation=(1, 2)), (2, 4, 9, 8), 1),
    "same": (lambda: nn.Conv2d(4, 3, (5, 3), padding="same", bias=False), (2, 4, 5, 6), 1),
    "mirrored": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 6), 1),
    "pointwise": (lambda: nn.Conv2d(4, 3, 1), (2, 4, 3, 3), 1),
    "of sequences": (lambda: nn.Conv1d(6, 4, 5, stride=2, padding=2), (2, 6, 9), 2),
    "of volumes": (lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 2, 3, 4, 3), 1),
    "transposed": (
        lambda: nn.ConvTranspose2d(
            4, 3, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 0), dilation=(2, 1)
        ),
        (2, 4, 3, 4),
        1,
    ),
    "transposed, of sequences": (
        lambda: nn.ConvTranspose1d(4, 3, 2, stride=2, padding=2),
        (2, 4, 6),
        1,
    ),
    "linear": (lambda: nn.Linear(12, 5), (6, 12), 3),
    "linear on a sequence": (lambda: nn.Linear(6, 2), (3, 5, 6), 1),
    "linear without bias": (lambda: nn.Linear(6, 2, bias=False), (3, 5, 6), 2),
}


def product_of(layer: nn.Module, seen: Tensor) -> Product:
    """What is caught of a layer while it runs."""
    caught: list[Product] = []
    catching = Products(
        Weights({"weight": layer.weight}), len(seen), 1, lambda _, product: caught.append(product)
    )
    with torch.no_grad(), pytest.raises(AllSeenError), catching:
        layer(seen)
    return caught[0]


def layer_of(case: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer, what it sees, and the inputs of each channel, in an order of their own."""
    make, shape, per_channel = LAYERS[case]
    torch.manual_seed(4)
    layer = make()
    n_inputs = shape[-1] if isinstance(layer, nn.Linear) else shape[1]
    inputs = torch.randperm(n_inputs).reshape(-1, per_channel)
    return layer, torch.randn(shape), inputs


def outputs(layer: nn.Module, seen: Tensor) -> Tensor:
    """All output values without the bias, in the order (image, filter, place)."""
    with torch.no_grad():
        found = layer(seen) - layer(torch.zeros_like(seen))
    return (
        found.reshape(len(seen), -1, found.shape[-1]).mT if isinstance(layer, nn.Linear) else found
    )


@pytest.mark.parametrize("case", LAYERS)
def test_a_contribution_is_the_output_while_all_other_channels_are_zero(case: str) -> None:
    layer, seen, inputs = layer_of(case)
    found = sampled_contributions(product_of(layer, seen), inputs, EVERY_OUTPUT, generator())
    dim = -1 if isinstance(layer, nn.Linear) else 1
    for channel, its_inputs in enumerate(inputs):
        others = torch.tensor([i for i in range(inputs.numel()) if i not in its_inputs])
        alone = outputs(layer, seen.index_fill(dim, others, 0)).flatten()
        torch.testing.assert_close(found[:, channel], alone, rtol=1e-5, atol=1e-6)


GROUPED = {
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1),
    "grouped and transposed": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2, stride=2),
}


@pytest.mark.parametrize("case", GROUPED)
def test_an_output_of_a_grouped_conv_reads_its_own_groups_inputs_only(case: str) -> None:
    torch.manual_seed(4)
    layer, seen = GROUPED[case](), torch.randn(3, 6, 5, 4)
    inputs = torch.tensor([[2], [0], [1]])  # places in a group
    found = sampled_contributions(product_of(layer, seen), inputs, EVERY_OUTPUT, generator())
    for channel, place in enumerate((2, 0, 1)):
        others = torch.tensor([i for i in range(6) if i % 3 != place])
        alone = outputs(layer, seen.index_fill(1, others, 0)).flatten()
        torch.testing.assert_close(found[:, channel], alone, rtol=1e-5, atol=1e-6)


def test_what_is_caught_scales_the_weights_of_each_input_in_place() -> None:
    for case in LAYERS:
        layer, seen, _ = layer_of(case)
        caught = product_of(layer, seen).inputs
        dim = -1 if isinstance(layer, nn.Linear) else 1
        for place in (0, 1):
            alone = seen.index_fill(
                dim, torch.tensor([i for i in range(len(caught)) if i != place]), 0
            )
            before = outputs(layer, alone)
            with torch.no_grad():
                caught[place] *= 3
            torch.testing.assert_close(outputs(layer, alone), 3 * before, rtol=1e-4, atol=1e-5)


def test_a_weight_is_caught_as_it_lies_in_its_parameter_however_it_is_used() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    seen = torch.randn(3, 5, 4)
    caught: list[Product] = []

    def used(x: Tensor) -> None:
        first, second = weight.split((2, 4))
        F.linear(x, first)
        torch.matmul(x.to(torch.bfloat16), second.to(torch.bfloat16).T)
        torch.einsum("oi,nli->nol", weight, x)

    catching = Products(Weights({"w": weight}), 3, 4, lambda _, product: caught.append(product))
    with torch.no_grad(), catching:
        used(seen)
    assert [product.maps.shape for product in caught] == [(3, 4, 5)] * 3
    for product, expected in zip(caught, (weight[:2], weight[2:], weight), strict=True):
        assert torch.equal(product.inputs.T, expected)
        assert product.inputs.untyped_storage().data_ptr() == weight.data_ptr()
        torch.testing.assert_close(product.maps, seen.mT, rtol=0.01, atol=0.01)


def test_inputs_are_told_apart_by_channel_and_those_of_no_channel_left_out() -> None:
    channels = torch.tensor([1, -1, 0, 1, 1, -1])
    assert inputs_by_channel(channels, 2).tolist() == [[2, 6, 6], [0, 3, 4]]


@pytest.mark.parametrize("case", ["strided", "linear"])
def test_samples_are_outputs_of_each_image_in_turn(case: str) -> None:
    layer, seen, inputs = layer_of(case)
    product = product_of(layer, seen)
    found = sampled_contributions(product, inputs, 4, generator()).sum(dim=1)
    values = outputs(layer, seen).flatten(1)
    assert len(found) == 4 * len(seen)
    for image, sums in enumerate(found.split(4)):
        nearest = (values[image] - sums[:, None]).abs().min(dim=1).values
        assert nearest.max() < 1e-5
    again = sampled_contributions(product, inputs, 4, generator()).sum(dim=1)
    other = sampled_contributions(product, inputs, 4, generator(1)).sum(dim=1)
    assert torch.equal(found, again) and not torch.equal(found, other)


def test_all_places_and_filters_are_sampled_alike() -> None:
    conv = nn.Conv2d(1, 3, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 100.0, 10000.0]).reshape(3, 1, 1, 1)
    # Every output has a value of its own.
    product = product_of(conv, torch.arange(1.0, 5.0).reshape(1, 1, 2, 2))
    found = sampled_contributions(product, torch.tensor([[0]]), 11, generator())
    many = [
        sampled_contributions(product, torch.tensor([[0]]), 11, g) for g in [generator(2)] * 600
    ]
    counts = torch.cat(many).flatten().unique(return_counts=True)[1]
    assert len(found) == 11 and len(counts) == 12
    assert counts.min() > 450 and counts.max() < 650  # 550 expected, deviation 22


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
