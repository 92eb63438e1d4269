"""How many channels go: by a keep ratio, or for a share of the multiplications."""

import pytest
import torch
from small_networks import Net, backbone, conv, images, pooled
from torch import nn
from torch.nn.utils import prune

from baselines import L1Filter, RandomChannels
from baselines.channels.channel_groups import channel_groups
from baselines.channels.channel_removal import remove_channels
from baselines.channels.keep_ratio import KeepAmount, amount_for, n_removed
from baselines.channels.multiplications import Multiplications
from testbed.cost import multiplications_by_layer


def test_the_number_removed_is_that_of_ln_structured() -> None:
    for channels in range(2, 65):
        for keep_ratio in (0.05, 0.1, 0.25, 0.3, 0.5, 0.625, 0.7, 0.75, 0.9, 0.95):
            layer = nn.Linear(1, channels, bias=False)  # each row is a filter of one weight
            prune.ln_structured(layer, "weight", amount=1 - keep_ratio, n=1, dim=0)
            theirs = int((layer.weight_mask == 0).sum())
            assert n_removed(keep_ratio, channels) == min(theirs, channels - 1)
    assert n_removed(0.01, 8) == 7
    assert [n_removed(0.5, c) for c in (1, 3, 5, 7)] == [0, 2, 2, 4]  # halves go to even numbers


def test_with_round_to_a_multiple_stays() -> None:
    kept = [n - n_removed(0.6, n, round_to=8) for n in (4, 8, 16, 20, 64, 100)]
    assert kept == [2, 8, 8, 8, 32, 56]
    assert n_removed(1.0, 20, round_to=8) == 0


@pytest.mark.parametrize("scope", ["inside_blocks", "all"])
@pytest.mark.parametrize("name", ["conv", "vgg16", "resnet18", "resnet20"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_share_of_multiplications_is_met_from_below(
    name: str, share: float, scope: str
) -> None:
    model, image = backbone(name), images()[:1]
    groups = channel_groups(model, image, scope=scope)
    amount = amount_for(share, groups)
    smaller = remove_channels(
        model, image, groups, {n: range(k) for n, k in amount.removed.items()}
    )
    dense = multiplications_by_layer(model, image).total()
    reached = multiplications_by_layer(smaller, image).total() / dense
    assert 0.98 * share <= reached <= share
    assert reached == pytest.approx(Multiplications(groups).share(amount.removed), abs=1e-12)


def test_one_channel_more_would_exceed_the_share() -> None:
    groups = channel_groups(backbone("vgg16"), images())
    costs = Multiplications(groups)
    removed = amount_for(0.5, groups).removed
    dearest = max(groups, key=lambda name: costs.share({name: 1}) < 1)
    more = {name: max(0, n - 1) for name, n in removed.items()}
    assert costs.share(removed) <= 0.5 < costs.share(more)
    assert removed[dearest] > 0


def test_rounding_to_multiples_meets_the_share_from_below() -> None:
    model = backbone("resnet18")
    groups = channel_groups(model, images())
    amount = amount_for(0.5, groups, round_to=8)
    kept = {name: group.channels - amount.removed[name] for name, group in groups.items()}
    assert all(n % 8 == 0 for n in kept.values()) and len(set(kept.values())) > 2
    assert 0.45 <= Multiplications(groups).share(amount.removed) <= 0.5


def test_the_keep_ratio_of_a_share_is_found() -> None:
    # With conv 1 of 4 channels and conv 2 of 8, at 8 x 8 pixels: 27 c1 * 64 + 9 c1 c2 * 64 + 2 c2.
    model = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)))),
        first=conv(3, 4),
        second=conv(4, 8),
        fc=nn.Linear(8, 2),
    )
    dense = 27 * 4 * 64 + 9 * 4 * 8 * 64 + 2 * 8
    wanted = (27 * 3 * 64 + 9 * 3 * 6 * 64 + 2 * 6) / dense
    groups = channel_groups(model, images(size=8))
    assert amount_for(wanted, groups).removed == {"first": 1, "second": 2}


def test_a_share_that_cannot_be_reached_is_refused_with_the_range() -> None:
    # One channel each: 27 * 64 + 9 * 64 + 2 multiplications of 27 * 2 * 64 + 9 * 4 * 64 + 2 * 2.
    model = Net(
        lambda net, x: net.fc(pooled(net.second(net.first(x)))),
        first=conv(3, 2),
        second=conv(2, 2),
        fc=nn.Linear(2, 2),
    )
    smallest = (27 * 64 + 9 * 64 + 2) / (27 * 2 * 64 + 9 * 4 * 64 + 2 * 2)
    message = rf"in a range from {smallest:.3g} \(one"
    with pytest.raises(ValueError, match=message):
        amount_for(0.1, channel_groups(model, images(size=8)))


def test_a_share_out_of_reach_is_refused_with_layers_that_stay_whole() -> None:
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        amount_for(0.02, channel_groups(backbone("resnet20"), images()))
    assert "stage1.0.conv2: residual blocks add to its channels (scope: all" in str(caught.value)
    assert "layers more" in str(caught.value)
    assert "Ask for a share in that range" in str(caught.value)


def test_keeping_less_than_all_is_never_a_silent_nothing() -> None:
    with pytest.raises(ValueError, match="removes nothing"):
        KeepAmount(keep_ratio=0.99).amount(backbone("conv", channels=(4, 8)), images())
    for all_kept in (KeepAmount(keep_ratio=1.0), KeepAmount(keep_multiplications=1.0)):
        assert not any(all_kept.amount(backbone("conv"), images()).removed.values())


def test_both_amounts_are_refused_and_one_is_the_default() -> None:
    with pytest.raises(ValueError, match="not both"):
        L1Filter(keep_ratio=0.5, keep_multiplications=0.5)
    assert RandomChannels().keep_ratio == 0.5


def test_work_done_once_a_batch_counts_as_one_images() -> None:
    model = Net(
        lambda net, x: net.fc(pooled(net.b(net.a(x)))) + net.c(net.table).mean(dim=0),
        a=conv(3, 32),
        b=conv(32, 32),
        c=nn.Linear(64, 2),
        fc=nn.Linear(32, 2),
    )
    model.table = nn.Parameter(torch.randn(10_000, 64))
    groups = channel_groups(model, images(size=8))
    amount = amount_for(0.7, groups)
    removed = {name: range(n) for name, n in amount.removed.items()}
    smaller = remove_channels(model, images(size=8), groups, removed)
    counts = [multiplications_by_layer(m, images(size=8)[:1]).total() for m in (smaller, model)]
    assert 0.98 * 0.7 <= counts[0] / counts[1] <= 0.7
