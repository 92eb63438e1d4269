"""Network routing and its control: what they spend, reach and refuse."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from small_networks import Net, conv, pooled
from torch import nn

from rnp import fixed_choice
from rnp.dropped_blocks import BlockCost, adapted
from rnp.fixed_choice import best_fixed_actions
from rnp.learning.loss_table import passes_per_image
from rnp.network_routing import NetworkRouting, routes
from rnp.routed_network import FixedRoute, RoutedNetwork
from rnp.static_blocks import StaticBlocks, a_block_less
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, multiplications_by_layer
from testbed.method import judged_on

QUICK: dict[str, Any] = {"encoding": 4, "hidden": 4, "steps": 60, "batch_size": 32, "rounds": 1}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet20", (2, 8, 8), 3, width=0.25)


def dense_multiplications() -> int:
    return multiplications_by_layer(resnet(), torch.zeros(1, 2, 8, 8)).total()


def routed(reports: list[Mapping[str, float]] | None = None, **options: Any) -> RoutedNetwork:
    run = tiny.run(2, reports=reports)
    network = NetworkRouting(**{**QUICK, **options}).prune(resnet(), tiny.splits(), run)
    assert isinstance(network, RoutedNetwork)
    return network


def inputs() -> torch.Tensor:
    data = tiny.splits()
    return data.normalised(data.validation)[:]


def two_blocks() -> nn.Module:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x).relu()
        x = (x + net.a(x)).relu()
        return net.out(pooled(x + net.b(x)))  # type: ignore[no-any-return]

    return Net(forward, stem=conv(2, 6), a=conv(6, 6), b=conv(6, 6), out=nn.Linear(6, 3))


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
@pytest.mark.parametrize(("p", "computed"), [(0.0, 1.0), (-1e3, 0.0)])
def test_free_branches_are_computed_and_dear_ones_skipped_everywhere(
    p: float, computed: float, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every branch is worth something: the loss falls with each."""

    def losses(episodes: Any) -> torch.Tensor:
        return 2 - torch.stack(episodes.run.actions, dim=1).float().mean(dim=1)

    monkeypatch.setattr("rnp.learning.environment.BackboneEpisodes.losses", property(losses))
    reports: list[Mapping[str, float]] = []
    options = QUICK | {"steps": 300, "q_learning_rate": 1e-2, "p": p, "learner": learner}
    run = tiny.run(2, reports=reports)
    network = NetworkRouting(**options).prune(two_blocks(), tiny.splits(), run)
    assert isinstance(network, RoutedNetwork)
    assert (routes(network, inputs()) == computed).all()
    assert [reports[-1][f"computed.{name}"] for name in "ab"] == [computed] * 2


@pytest.mark.parametrize(("kind", "learner"), [("resnet", "td"), ("two blocks", "cost_to_go")])
def test_a_network_spends_its_budget_on_validation_images(kind: str, learner: str) -> None:
    share, dense = 0.7, resnet() if kind == "resnet" else two_blocks()
    options = {"keep_multiplications": share, "steps": 20, "batch_size": 16, "learner": learner}
    reports: list[Mapping[str, float]] = []
    method, run = NetworkRouting(**{**QUICK, **options}), tiny.run(2, reports=reports)
    network = method.prune(dense, tiny.splits(), run)
    whole = multiplications_by_layer(dense, torch.zeros(1, 2, 8, 8)).total()
    spent = count_multiplications(network, inputs()).multiplications
    assert spent <= share * whole * 1.001
    assert reports[-1]["round_multiplications"] == pytest.approx(spent)
    assert reports[-1]["q_learning_epochs"] > 0


def test_a_table_of_all_routes_has_no_more_images_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_train, passed = len(tiny.splits().train), []
    for most in (n_train, 24):
        monkeypatch.setattr("rnp.network_routing.LOOKED_AT", most)
        reports: list[Mapping[str, float]] = []
        options = QUICK | {"p": -0.1, "steps": 5}
        NetworkRouting(**options).prune(two_blocks(), tiny.splits(), tiny.run(2, reports=reports))
        passed.append(reports[-1]["q_learning_epochs"] * n_train)
    each = passes_per_image(RoutedNetwork(two_blocks(), 4, 4), tiny.splits())
    assert passed[0] - passed[1] == pytest.approx((n_train - 24) * each)


def test_networks_without_blocks_to_skip_are_refused_before_training() -> None:
    for method in (NetworkRouting(**QUICK), StaticBlocks()):
        run = tiny.run(3)
        for call in (
            lambda method=method: method.check_network(tiny.network("conv"), tiny.splits()),
            lambda method=method, run=run: method.prune(tiny.network("conv"), tiny.splits(), run),
        ):
            with pytest.raises(ValueError, match=r"No residual block of .* can be skipped"):
                call()
        assert run.epochs_spent == 0 and run.reported == []


def test_a_budget_below_the_trunk_is_refused_with_what_can_be_had() -> None:
    run = tiny.run(3)
    with pytest.raises(ValueError, match="without all 7 blocks that can be skipped") as error:
        NetworkRouting(**QUICK, keep_multiplications=0.05).prune(resnet(), tiny.splits(), run)
    cost = BlockCost(RoutedNetwork(resnet(), 4, 4), tiny.splits())
    assert f"skipped {cost.least / cost.dense:.2f}" in str(error.value)[:-1] or "deciding" in str(
        error.value
    )
    with pytest.raises(ValueError, match="Ask for that or more"):
        StaticBlocks(keep_multiplications=0.05).prune(resnet(), tiny.splits(), run)
    assert run.epochs_spent == 0


def test_too_many_rounds_for_the_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rounds need an epoch each"):
        routed(rounds=9)


def test_the_control_keeps_the_blocks_of_least_loss_that_the_budget_allows() -> None:
    data, run = tiny.splits(), tiny.run(4)
    network = adapted(resnet(), data, run, 0.5).eval()
    cost = BlockCost(network, data, deciding=False)
    budget = 0.6 * cost.dense
    actions = best_fixed_actions(network, data.validation, data, run, cost, budget, a_block_less)
    losses = {
        each: F.cross_entropy(
            network.routed(inputs(), torch.tensor([each]).expand(48, -1)), data.validation.labels
        ).item()
        for each in product((0, 1), repeat=7)
        if cost(each) <= budget
    }
    assert cost(actions) <= budget
    assert losses[actions] == pytest.approx(min(losses.values()), rel=1e-5)


def test_of_many_blocks_one_is_dropped_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_choice, "MOST_COMPARED", 1)
    network = StaticBlocks(keep_multiplications=0.6).prune(resnet(), tiny.splits(), tiny.run(2))
    spent = count_multiplications(network, inputs()).multiplications / dense_multiplications()
    assert 0.4 < spent <= 0.6


def test_the_control_is_one_network_for_all_images_within_the_budget() -> None:
    reports: list[Mapping[str, float]] = []
    method, run = StaticBlocks(keep_multiplications=0.6), tiny.run(2, reports=reports)
    network = method.prune(resnet(), tiny.splits(), run)
    assert isinstance(network, FixedRoute)
    spent = count_multiplications(network, inputs())
    assert spent.multiplications <= 0.6 * dense_multiplications()
    assert not spent.decides_per_image
    (chosen,) = [r for r in reports if any(name.startswith("computed.") for name in r)]
    assert sum(chosen.values()) == network.kept_blocks.sum()
    assert len(judged_on(method, tiny.splits()).validation) == 24
