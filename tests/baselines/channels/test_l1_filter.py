"""L1 filter pruning: the filters it keeps, and its rounds."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import prune

from baselines import L1Filter, ThiNet
from baselines.channels.rounds import epochs_per_round
from testbed.cost import count_multiplications


def kept_by_ln_structured(conv: nn.Conv2d, keep_ratio: float) -> Tensor:
    pruned = prune.ln_structured(
        nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False),
        "weight",
        amount=1 - keep_ratio,
        n=1,
        dim=0,
        importance_scores=conv.weight.detach(),
    )
    return pruned.weight_mask.flatten(1).any(dim=1).nonzero().flatten()


@pytest.mark.parametrize("keep_ratio", [0.2, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("tied", [False, True])
def test_it_keeps_exactly_the_filters_that_ln_structured_keeps(
    keep_ratio: float, tied: bool
) -> None:
    model = tiny.build_backbone("conv", (2, 8, 8), 3, channels=(40, 33), hidden=10)
    if tied:  # few different norms, so that ties have to be broken at the cut
        for layer in (model.conv1, model.conv2):
            layer.weight.data = torch.randint(-1, 2, layer.weight.shape).sign().float()
            layer.weight.data[::2] = 1.0
    smaller = L1Filter(keep_ratio=keep_ratio).prune(model, tiny.splits(), tiny.run(0))
    first = kept_by_ln_structured(model.conv1, keep_ratio)
    second = kept_by_ln_structured(model.conv2, keep_ratio)
    assert torch.equal(smaller.conv1.weight, model.conv1.weight[first])
    assert torch.equal(smaller.conv2.weight, model.conv2.weight[second][:, first])


def test_the_filter_with_the_smallest_sum_goes() -> None:
    model = tiny.network()
    weight = model.conv1.weight.data.fill_(1.0)
    weight[2] = -0.5  # the smallest sum of absolute values, though its sum of squares ...
    weight[4] = 0.0
    weight[4, 0, 0, 0] = 8.0  # ... is smaller than this one's: 4.5 against 64, while 9 > 8 in L1
    smaller = L1Filter(keep_ratio=5 / 6).prune(model, tiny.splits(), tiny.run(0))
    assert torch.equal(smaller.conv1.weight, weight[[0, 1, 2, 3, 5]])


def test_rounds_come_to_the_same_size_as_one() -> None:
    reports: list = []
    amounts = {"keep_ratio": 0.4}
    once = L1Filter(**amounts).prune(tiny.network(), tiny.splits(), tiny.run(3))
    method = L1Filter(**amounts, rounds=3)
    thrice = method.prune(tiny.network(), tiny.splits(), tiny.run(3, reports=reports))
    assert [w.shape for w in once.state_dict().values()] == [
        w.shape for w in thrice.state_dict().values()
    ]
    rounds = [r for r in reports if "round" in r]
    assert [r["round"] for r in rounds] == [1, 2, 3]
    # 6 and 8 channels, thinned by 0.4 ** (1/3) = 0.737 a round: 4 + 6, 3 + 4, 2 + 3 are kept.
    assert [r["channels_kept"] for r in rounds] == [10 / 14, 7 / 14, 5 / 14]


def test_a_share_of_the_multiplications_is_kept() -> None:
    data, model = tiny.splits(), tiny.network()
    smaller = L1Filter(keep_multiplications=0.5).prune(model, data, tiny.run(0))
    example = torch.randn(2, 2, 8, 8)
    dense = count_multiplications(model, example).multiplications
    share = count_multiplications(smaller, example).multiplications / dense
    assert share == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("rounds", "epochs", "expected"),
    [(1, 0, [0]), (1, 5, [5]), (3, 5, [1, 2, 2]), (2, 4, [2, 2]), (3, 3, [1, 1, 1])],
)
def test_rounds_share_the_epochs_evenly(rounds: int, epochs: int, expected: list[int]) -> None:
    assert epochs_per_round(rounds, epochs) == expected
    assert math.fsum(expected) == epochs


def test_more_rounds_than_epochs_are_refused_when_options_are_checked_and_when_they_run() -> None:
    context = {"fine_tuning": tiny.run(2).fine_tuning}
    assert L1Filter.model_validate({"rounds": 2}, context=context).rounds == 2
    with pytest.raises(ValidationError, match="at most 2 rounds"):
        L1Filter.model_validate({"rounds": 3}, context=context)
    with pytest.raises(ValueError, match=r"fine_tuning.epochs is 2"):
        L1Filter(rounds=3).prune(tiny.network(), tiny.splits(), tiny.run(2))


def test_one_of_both_amounts_is_taken() -> None:
    assert L1Filter().keep_ratio == 0.5
    assert L1Filter(keep_multiplications=0.5).keep_ratio is None
    with pytest.raises(ValidationError, match="not both"):
        L1Filter(keep_ratio=0.5, keep_multiplications=0.5)
    for method in (L1Filter(), L1Filter(keep_multiplications=0.5)):
        assert L1Filter.model_validate(method.model_dump()) == method


class Stopped(Exception):  # noqa: N818 (no error)
    """As if the process had been killed."""


@pytest.mark.parametrize("method", [L1Filter(keep_ratio=0.25, rounds=2), ThiNet(rounds=2)])
def test_rounds_on_grouped_convs_resume_where_they_were_stopped(
    method: L1Filter | ThiNet, tmp_path: Path
) -> None:
    """Eight groups of four, then four of four, which by themselves are thinned in another way."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    data = tiny.splits()
    whole = method.prune(model, data, tiny.run(2))

    def stop(values: Mapping[str, float]) -> None:
        if values.get("round") == 2:
            raise Stopped

    begun = tiny.run(2)
    begun.folder, begun._listener = tmp_path, stop
    with pytest.raises(Stopped):
        method.prune(model, data, begun)
    resumed_run = tiny.run(2)
    resumed_run.folder = tmp_path
    resumed = method.prune(model, data, resumed_run)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
    assert whole[1].groups < 8
