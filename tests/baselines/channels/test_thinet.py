"""ThiNet: what it samples, which channels it chooses and how it scales the others."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

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
