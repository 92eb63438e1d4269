"""RNP in groups: how it trains, what it spends, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from pydantic import ValidationError
from torch import Tensor, nn

from rnp.grouped_network import GroupedNetwork
from rnp.learning.stopping import Looks
from rnp.rnp_groups import AllGroups, Answers, GroupCost, RNPGroups, answered, fit_weights
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, multiplications_by_layer
from testbed.data import Images, Splits
from testbed.new_weights import draw_anew
from testbed.training import Distillation

QUICK: dict[str, Any] = {"encoding": 2, "hidden": 2, "steps": 60, "batch_size": 32}


def grouped(groups: tuple[float, ...] = (0.4, 0.7), kind: str = "conv") -> GroupedNetwork:
    network = RNPGroups(groups=groups)._grouped(tiny.network(kind), tiny.splits())
    draw_anew(network, 0)
    return network


def pruned(seed: int = 0, **options: Any) -> tuple[GroupedNetwork, list[Mapping[str, float]]]:
    run = tiny.run(3, seed=seed, reports=(reports := []))
    network = RNPGroups(**{**QUICK, **options}).prune(tiny.network(), tiny.splits(), run)
    assert isinstance(network, GroupedNetwork)
    return network, reports


def share_spent(network: nn.Module, data: Splits) -> float:
    inputs = data.normalised(data.validation)
    dense = count_multiplications(tiny.network(), inputs[:1]).multiplications
    return count_multiplications(network, inputs).multiplications / dense


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_all_groups_is_the_sum_of_their_own(smoothing: float) -> None:
    network, images = grouped(), torch.randn(12, 2, 8, 8)
    labels = torch.arange(12) % 3
    together = AllGroups(network, tiny.run()).eval()
    together.training = True  # while batch norms take running statistics
    product_ = together(images)
    loss = F.cross_entropy(product_, labels, label_smoothing=smoothing)
    own = [
        F.cross_entropy(network.look(group, images)[1], labels, label_smoothing=smoothing)
        for group in range(2)
    ]
    torch.testing.assert_close(loss + together.apart(network, 0.0), own[0] + own[1])


def test_a_group_trains_as_it_would_alone() -> None:
    """Down to the weights: another group beside it changes nothing."""
    data = tiny.splits()
    network, copied = (grouped(kind="residual") for _ in range(2))  # without dropout, which draws
    alone = nn.Sequential(copied.bodies[1], copied.classifiers[1])
    together = AllGroups(network, tiny.run())
    tiny.run(1).train_from_scratch(together, data, together.apart)
    tiny.run(1).train_from_scratch(alone, data)
    for one, other in zip(network.bodies[1].parameters(), alone[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_distillation_leaves_the_labels_their_share() -> None:
    run = tiny.run()
    distillation = Distillation(teacher={}, weight=0.75)
    run.fine_tuning = run.fine_tuning.model_copy(update={"distillation": distillation})
    network, images = grouped(), torch.randn(6, 2, 8, 8)
    plain, taught = AllGroups(network, tiny.run()).eval(), AllGroups(network, run).eval()
    for each in (plain, taught):
        each(images)
    torch.testing.assert_close(taught.apart(network, 0.0), 0.25 * plain.apart(network, 0.0))


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_the_closed_form_of_the_cost_is_what_is_counted(kind: str) -> None:
    network = grouped((0.3, 0.5, 0.8), kind).eval()
    data, model = tiny.splits(), tiny.network(kind)
    cost = GroupCost(network, model, data)
    image = torch.zeros(1, 2, 8, 8)
    assert cost.dense == multiplications_by_layer(model, image).total()
    for actions in product((0, 1), repeat=2):
        for step, action in enumerate(actions):
            network.decision.offsets[step] = torch.tensor([0.0, 1e6 if action else -1e6])
        counted = multiplications_by_layer(network, image).total()
        assert cost.of_images(torch.tensor([actions])).item() == counted
    assert cost.prices().mean().item() == pytest.approx(1)
    assert cost.prices()[1] > cost.prices()[0], "the wider group costs more"


def test_training_is_counted_once_with_all_groups() -> None:
    _, reports = pruned()
    (spent,) = [r for r in reports if "training_epochs" in r]
    assert spent["training_epochs"] == 5, "as long as vanilla: 2 epochs, and 3 for fine-tuning"
    network, image = grouped((0.35, 0.9)), torch.zeros(1, 2, 8, 8)
    both = zip(network.bodies, network.classifiers, strict=True)
    each = sum(multiplications_by_layer(nn.Sequential(*parts), image).total() for parts in both)
    assert spent["training_multiplications"] == 5 * 96 * each
    last = reports[-1]
    assert last["q_learning_epochs"] == (96 + 48) / 96, "each image was looked at once"


@pytest.mark.parametrize(("p", "reached"), [(0.0, 1.0), (-1e6, 0.0)])
def test_free_groups_are_all_computed_and_dear_ones_never(
    p: float, reached: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a second group helps every image."""
    real = Answers.looks

    def looks(*arguments: Any) -> Looks:
        found = real(*arguments)
        return replace(found, losses=torch.tensor([2.0, 1.0]).expand_as(found.losses))

    monkeypatch.setattr(Answers, "looks", looks)
    network, reports = pruned(p=p, steps=200, q_learning_rate=1e-2)
    data = tiny.splits()
    cost = GroupCost(network, tiny.network(), data)
    assert reports[-1]["p"] == p and reports[-1]["reached.group2"] == reached
    expected = (cost.most if reached else cost.least) / cost.dense
    assert share_spent(network, data) == pytest.approx(expected)


def test_a_network_spends_its_budget_on_validation_images() -> None:
    network = RNPGroups(**QUICK)._grouped(tiny.network(), tiny.splits())
    cost = GroupCost(network, tiny.network(), tiny.splits())
    least, most = cost.least / cost.dense, cost.most / cost.dense
    share = (least + most) / 2
    network, reports = pruned(2, keep_multiplications=share, steps=300)  # it tells images apart
    spent = share_spent(network, tiny.splits())
    assert share - (most - least) / 20 <= spent <= share * 1.001
    assert reports[-1]["p"] <= 0


def test_labels_of_validation_images_change_nothing() -> None:
    data, states = tiny.splits(), []
    for labels in (data.validation.labels, (data.validation.labels + 1) % 3):
        network = grouped()
        cost = GroupCost(network, tiny.network(), data)
        share = (cost.least + cost.most) / 2 / cost.dense
        method = RNPGroups(groups=(0.4, 0.7), keep_multiplications=share, steps=20)
        others = replace(data, validation=Images(data.validation.source, labels))
        method._learn(network, others, tiny.run(), cost, method._budget(cost))
        states.append(network.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_weights_are_the_best_for_the_answer_of_all_groups() -> None:
    network, data = grouped().eval(), tiny.splits()
    answers = answered(network, data.validation, data, tiny.run())
    labels = data.validation.labels
    fit_weights(network, answers, labels)

    def loss(weight: float) -> Tensor:
        return F.nll_loss(answers.averages(torch.tensor([1.0, weight]))[-1], labels)

    best = network.weights[1].item()
    assert all(loss(best) <= loss(weight / 10) for weight in range(11))


def test_what_cannot_be_had_is_refused_before_training() -> None:
    data, run = tiny.splits(), tiny.run()
    for options, message in (
        ({"keep_multiplications": 0.01}, "cannot be reached: the first group"),
        (
            {"keep_multiplications": 0.99, "groups": (0.3, 0.5)},
            "cannot be spent: all groups together take",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            RNPGroups(**QUICK, **options).prune(tiny.network(), data, run)
    with pytest.raises(ValueError, match="ends in a linear layer"):
        headless = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        RNPGroups().prune(headless, data, run)
    assert run.epochs_spent == 0 and run.reported == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [0.5]}, "at least 2 items"),
        ({"groups": [0.5, 1.5]}, "less than or equal to 1"),
        ({"groups": [0.0, 0.5]}, "greater than 0"),
        ({"p": 0.1}, "less than or equal to 0"),
        ({"p": -0.1, "keep_multiplications": 0.5}, "not both"),
        ({"alpha": 1.0, "keep_multiplications": 0.5}, "leave alpha out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RNPGroups(**options)


def test_residual_networks_are_divided_with_all_that_is_added() -> None:
    torch.manual_seed(0)
    model = build_backbone("resnet20", (2, 8, 8), 3, width=0.5)
    network = RNPGroups(**QUICK).skeleton(model)
    assert network(torch.randn(4, 2, 8, 8)).shape == (4, 3)
    thin = RNPGroups(**QUICK)._grouped(model, tiny.splits())
    assert thin.bodies[0].stage3[0].shortcut.new_channels == 11 - 6  # .35 of 32 and of 16
    assert thin(torch.randn(4, 2, 8, 8)).shape == (4, 3)
