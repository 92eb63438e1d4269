"""The method RNP: its rounds, what it reports, going on after a stop, other points of the curve."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import nn

import rnp.runtime_neural_pruning
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP, decide
from testbed.cost import count_multiplications
from testbed.data import normalise

QUICK = {"steps": 20, "batch_size": 32}


def images(n: int = 48) -> torch.Tensor:
    data = tiny.splits()
    return normalise(data.validation.pixels[:n], data.mean, data.std)


def prune(kind: str = "conv", epochs: int = 4, **options: Any) -> RuntimeNetwork:
    network = RNP(**QUICK, **options).prune(tiny.network(kind), tiny.splits(), tiny.run(epochs))
    assert isinstance(network, RuntimeNetwork)
    return network


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_a_harsh_penalty_computes_the_least_and_none_computes_more(kind: str) -> None:
    harsh, free = prune(kind, p=-1000.0), prune(kind, p=0.0)
    assert (decide(harsh, images()) == 0).all()
    assert decide(free, images()).double().mean() > 0.5


def test_every_round_reports_accuracy_cost_actions_and_penalty() -> None:
    reports: list[Mapping[str, float]] = []
    RNP(rounds=2, **QUICK).prune(tiny.network(), tiny.splits(), tiny.run(4, reports=reports))
    rounds = [report for report in reports if "round" in report]
    assert [report["round"] for report in rounds] == [1, 2]
    for report in rounds:
        assert report["penalty_in_cross_entropy"] == pytest.approx(0.1 / report["alpha"])
        assert 1 <= report["mean_action.conv2"] <= 4
        assert {"round_val_accuracy", "round_multiplications", "q_learning_epochs"} <= report.keys()


def test_the_last_report_is_of_the_network_that_comes_back() -> None:
    reports: list[Mapping[str, float]] = []
    run = tiny.run(4, reports=reports)
    network = RNP(p=-0.01, **QUICK).prune(tiny.network(), tiny.splits(), run)
    last = [report for report in reports if "round" in report][-1]
    assert last["round_multiplications"] == count_multiplications(network, images()).multiplications
    assert last["mean_action.conv2"] == decide(network, images()).double().mean().item() + 1


class StoppedError(Exception):
    """Stands for whatever stops a process."""


@pytest.mark.parametrize("stopped_in_round", [1, 2, 3])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(
    stopped_in_round: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = RNP(rounds=3, **QUICK)
    whole = method.prune(tiny.network(), tiny.splits(), tiny.run(5))
    real_learn, taught = rnp.runtime_neural_pruning.learn_decisions, []

    def stop(*arguments: Any, **options: Any) -> Any:
        if len(taught) == stopped_in_round:
            raise StoppedError
        taught.append(real_learn(*arguments, **options))
        return taught[-1]

    first, second = tiny.run(5), tiny.run(5)
    first.folder = second.folder = tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(rnp.runtime_neural_pruning, "learn_decisions", stop)
        if stopped_in_round < 3:
            with pytest.raises(StoppedError):
                method.prune(tiny.network(), tiny.splits(), first)
        else:
            method.prune(tiny.network(), tiny.splits(), first)  # stopped after its last round
    taught.clear()

    def count(*arguments: Any, **options: Any) -> Any:
        taught.append(real_learn(*arguments, **options))
        return taught[-1]

    monkeypatch.setattr(rnp.runtime_neural_pruning, "learn_decisions", count)
    network = method.prune(tiny.network(), tiny.splits(), second)
    assert len(taught) == 3 - stopped_in_round, "rounds that were done are not taught again"
    assert same(network, whole)
    assert not network.training
    assert second.epochs_spent == 5
    rounds = [values["round"] for values in second.reported if "round" in values]
    assert rounds == [1, 2, 3]


def test_other_penalties_relearn_the_decisions_and_leave_the_backbone() -> None:
    network = prune(p=0.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run = tiny.run(4)
    cheap = RNP(p=-1000.0, **QUICK).relearn(network, tiny.splits(), run)
    assert run.epochs_spent == 0
    assert (decide(cheap, images()) == 0).all()
    for name, tensor in before.items():
        assert torch.equal(network.state_dict()[name], tensor), name
        if not name.startswith("decision."):
            assert torch.equal(cheap.state_dict()[name], tensor), name
    costs = [count_multiplications(n, images()).multiplications for n in (cheap, network)]
    assert costs[0] < costs[1]


def test_to_learn_last_is_to_relearn_what_the_last_fine_tuning_left() -> None:
    reports: list[Mapping[str, float]] = []
    method, run = RNP(**QUICK, p=-0.02), tiny.run(4, reports=reports)
    before = method.prune(tiny.network(), tiny.splits(), tiny.run(4))
    expected = method.relearn(before, tiny.splits(), tiny.run(4))
    last = method.model_copy(update={"learn_last": True})
    assert same(last.prune(tiny.network(), tiny.splits(), run), expected)
    assert [report["round"] for report in reports if "round" in report] == [1, 2, 3]


def test_relearnt_decisions_do_not_depend_on_those_before() -> None:
    network = prune(p=0.0)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.decision.parameters():
            parameter.add_(1.0)
    method = RNP(p=-0.1, **QUICK)
    relearnt = [method.relearn(each, tiny.splits(), tiny.run(4)) for each in (network, other)]
    assert same(*relearnt)


def test_to_relearn_with_another_number_of_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="k = 8 groups, as in these options, got one of 4"):
        RNP(k=8, **QUICK).relearn(prune(), tiny.splits(), tiny.run(4))


def test_a_budget_that_cannot_pay_the_default_rounds_is_refused_with_the_sweep_file() -> None:
    context = {"fine_tuning": tiny.run(1).fine_tuning}
    with pytest.raises(ValidationError, match="2 rounds need an epoch each"):
        RNP.model_validate({}, context=context)


class Viewing(nn.Module):
    """A network that only contiguous feature maps can go through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 4, 3, padding=1)
        self.classifier = nn.Linear(4 * 8 * 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv3(self.conv2(self.conv1(images).relu()).relu()).relu()
        logits: torch.Tensor = self.classifier(maps.view(maps.size(0), -1))
        return logits


def test_a_network_that_views_its_feature_maps_can_be_pruned() -> None:
    data = tiny.splits()
    network = RNP(p=-0.1, **QUICK).prune(Viewing(), data, tiny.run(4))
    assert network(images()).shape == (48, 3)


def test_the_decision_network_is_fixed_while_the_backbone_is_fine_tuned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taught: list[dict[str, torch.Tensor]] = []
    real_learn = rnp.runtime_neural_pruning.learn_decisions

    def learn(network: RuntimeNetwork, *arguments: Any, **options: Any) -> Any:
        learned = real_learn(network, *arguments, **options)
        taught.append({k: v.clone() for k, v in network.state_dict().items()})
        return learned

    monkeypatch.setattr(rnp.runtime_neural_pruning, "learn_decisions", learn)
    network = prune(rounds=1)
    after = network.state_dict()
    for name, tensor in taught[0].items():
        if name.startswith("decision."):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["conv1.weight"], taught[0]["conv1.weight"])


def test_the_epochs_are_shared_by_adaptation_and_rounds() -> None:
    with pytest.raises(ValueError, match=r"4 rounds need an epoch each.* leaves 3"):
        prune(rounds=4, epochs=4)
    with pytest.raises(ValidationError, match="2 rounds need an epoch each"):
        settings = tiny.run(1).fine_tuning
        RNP.model_validate({"rounds": 2}, context={"fine_tuning": settings})
    RNP.model_validate({"rounds": 2}, context={"fine_tuning": tiny.run(2).fine_tuning})


def test_a_network_with_nothing_to_prune_is_a_clear_error() -> None:
    only = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ValueError, match="No conv of this network can run on a prefix"):
        RNP().prune(only, tiny.splits(), tiny.run(4))
