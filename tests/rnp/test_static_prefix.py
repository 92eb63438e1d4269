"""The best fixed prefixes: what they cost, which they are, and the network they make."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rnp import fixed_choice, static_prefix
from rnp.adaptation import adapted
from rnp.fixed_choice import best_of_all, shrunk
from rnp.prefix_cost import Actions, PrefixCost
from rnp.runtime_network import RuntimeNetwork
from rnp.static_prefix import StaticPrefix, a_group_less, cut
from rnp.structure.channel_flow import channel_flow
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import Images, normalise
from testbed.held_back import divided
from testbed.method import judged_on
from testbed.network_file import load_network, save_network
from testbed.training import evaluate

CPU = torch.device("cpu")
KINDS = ["conv", "residual", "deep", "odd norms"]


class OddNorms(nn.Module):
    """A batch norm after the activation, one without weights, no biases, a mean before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 7, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(7, affine=False)
        self.norm2 = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 6, 3, bias=False)
        self.classifier = nn.Linear(6, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.norm2(self.norm1(self.conv1(self.stem(images))).relu())
        logits: Tensor = self.classifier(self.conv2(inner).relu().mean(dim=(2, 3)))
        return logits


def network(kind: str) -> nn.Module:
    """With batch norm statistics that are not those of a new network."""
    torch.manual_seed(5)
    if kind == "deep":
        found: nn.Module = build_backbone("conv", (2, 8, 8), 3, channels=(6, 8, 5, 7, 4), hidden=9)
    else:
        found = OddNorms() if kind == "odd norms" else tiny.network(kind)
    found.train()(torch.randn(16, 2, 8, 8))
    return found.eval()


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def some_actions(n_convs: int) -> list[Actions]:
    """All, or those of a deep network where every conv has each action once."""
    if n_convs < 3:
        return list(product(range(4), repeat=n_convs))
    return [tuple((first + step) % 4 for step in range(n_convs)) for first in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_network_computes_what_the_masked_one_does(kind: str) -> None:
    model = network(kind)
    runtime = RuntimeNetwork(model).eval()
    flow = channel_flow(model, 4)
    for actions in some_actions(len(flow.convs)):
        small = cut(model, model.state_dict(), flow, actions).eval()
        masked = runtime.masked(images(), torch.tensor([actions] * 6))
        torch.testing.assert_close(small(images()), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_what_is_counted_of_the_cut_network(kind: str) -> None:
    model = network(kind)
    flow = channel_flow(model, 4)
    cost = PrefixCost.of_model(model, flow, tiny.splits())
    for actions in some_actions(len(flow.convs)):
        small = cut(model, model.state_dict(), flow, actions)
        assert count_multiplications(small, images(1)).multiplications == cost(actions)
    assert cost((3,) * len(flow.convs)) == cost.dense


def test_a_cut_network_comes_back_from_its_file(tmp_path: Path) -> None:
    model = network("deep")
    small = cut(model, model.state_dict(), channel_flow(model, 4), (0, 3, 1, 2))
    save_network(small, tmp_path / "network")
    loaded = load_network(tmp_path / "network", model)
    assert torch.equal(loaded.eval()(images()), small.eval()(images()))


def test_cutting_leaves_the_network_as_it_is() -> None:
    model = network("conv")
    before = copy.deepcopy(model.state_dict())
    cut(model, model.state_dict(), channel_flow(model, 4), (0,))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.get_submodule("conv2").out_channels == 8


def made(kind: str, **options: float) -> Actions:
    """The actions that are chosen; checked against the network that comes back."""
    reports: list[Any] = []
    run = tiny.run(4, reports=reports)
    model = network(kind)
    pruned = StaticPrefix(**options).prune(model, tiny.splits(), run)
    flow = channel_flow(model, 4)
    (means,) = [r for r in reports if any(name.startswith("mean_action.") for name in r)]
    actions = tuple(int(means[f"mean_action.{conv.name}"]) - 1 for conv in flow.convs)
    for conv, action in zip(flow.convs, actions, strict=True):
        assert pruned.get_submodule(conv.name).out_channels == conv.prefixes[action]
    return actions


def validation_loss(runtime: RuntimeNetwork, actions: Actions) -> float:
    """As it is written in books."""
    data = tiny.splits()
    images, _ = divided(data, 0.5, "choice_share")
    inputs = normalise(images.pixels, data.mean, data.std)
    with torch.no_grad():
        logits = runtime.eval().masked(inputs, torch.tensor([actions] * len(inputs)))
    return F.cross_entropy(logits, images.labels).item()


def pixels_of(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.pixels}


def test_the_images_that_choose_the_prefixes_are_not_those_that_judge_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, method = tiny.splits(n_validation=60), StaticPrefix(choice_share=0.4)
    choosing, others = divided(data, 0.4, "choice_share")
    assert judged_on(method, data).validation.labels.equal(others.validation.labels)
    seen: list[set[bytes]] = []
    real = static_prefix.best_fixed_actions

    def spy(network: RuntimeNetwork, images: Images, *others: Any) -> Actions:
        seen.append(pixels_of(images))
        return real(network, images, *others)

    monkeypatch.setattr(static_prefix, "best_fixed_actions", spy)
    reports: list[Any] = []
    network = method.prune(tiny.trained(), data, tiny.run(4, reports=reports))
    assert seen == [pixels_of(choosing)]
    accuracy = evaluate(network, others.validation, data, device=CPU, precision="float32")
    assert [each["val_accuracy"] for each in reports if "epoch" in each][-1] == accuracy


def test_validation_images_that_leave_none_to_judge_by_are_refused_before_training() -> None:
    data, method = tiny.splits(n_validation=3), StaticPrefix(choice_share=0.9)
    for refused in (
        lambda: method.check_network(network("conv"), data),
        lambda: method.prune(network("conv"), data, tiny.run(3)),
    ):
        with pytest.raises(ValueError, match=r"choice_share 0\.9 takes 3 of 3 validation images"):
            refused()


@pytest.mark.parametrize("share", [0.45, 0.7, 1.0])
def test_of_all_affordable_prefixes_those_of_least_validation_loss_are_taken(share: float) -> None:
    model = network("odd norms")
    data = tiny.splits()
    runtime = adapted(model, data, tiny.run(4), StaticPrefix())
    cost = PrefixCost.of_model(model, runtime.flow, data)
    affordable = [
        actions
        for actions in product(range(4), repeat=len(runtime.flow.convs))
        if cost(actions) <= share * cost.dense
    ]
    best = min(affordable, key=lambda actions: validation_loss(runtime, actions))
    assert made("odd norms", keep_multiplications=share) == best


def prefixes_shrunk(loss: Callable[[Actions], float], cost: PrefixCost, budget: float) -> Actions:
    convs = cost.flow.convs
    whole = tuple(len(conv.prefixes) - 1 for conv in convs)
    return shrunk(loss, cost, budget, whole, partial(a_group_less, convs))


def test_the_greedy_choice_takes_the_group_away_that_is_missed_least() -> None:
    """With losses that add up over the convs, against a search that measures all each time."""
    model = network("deep")
    cost = PrefixCost.of_model(model, channel_flow(model, 4), tiny.splits())
    weights = torch.tensor([3.0, 0.5, 2.0, 1.0]).double()

    def loss(actions: Actions) -> float:
        return float((weights * (3 - torch.tensor(actions)).double() ** 2).sum())

    def by_hand(budget: float) -> Actions:
        actions: Actions = (3, 3, 3, 3)
        while cost(actions) > budget:
            options = [
                (*actions[:step], action - 1, *actions[step + 1 :])
                for step, action in enumerate(actions)
                if action
            ]
            actions = min(
                options, key=lambda o: (loss(o) - loss(actions)) / (cost(actions) - cost(o))
            )
        return actions

    for share in (1.0, 0.9, 0.7):
        found = prefixes_shrunk(loss, cost, share * cost.dense)
        assert found == by_hand(share * cost.dense)
        assert cost(found) <= share * cost.dense
    assert prefixes_shrunk(loss, cost, cost.dense) == (3, 3, 3, 3)


def test_empty_groups_are_passed_over() -> None:
    """Of a conv of two channels and four groups the two last are empty."""
    model = build_backbone("conv", (2, 8, 8), 3, channels=(4, 2, 6), hidden=9)
    cost = PrefixCost.of_model(model, channel_flow(model, 4), tiny.splits())
    smallest = cost((0, 0))
    assert cost(prefixes_shrunk(lambda actions: sum(actions), cost, smallest)) == smallest


def test_many_convs_are_chosen_for_greedily_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed_choice, "best_of_all", None)  # not called
    model = build_backbone("conv", (2, 8, 8), 3, channels=(6, 8, 5, 7, 4, 4), hidden=9)
    pruned = StaticPrefix(keep_multiplications=0.5).prune(model, tiny.splits(), tiny.run(2))
    dense = count_multiplications(model, images(1)).multiplications
    assert count_multiplications(pruned, images(1)).multiplications <= 0.5 * dense


def test_of_equal_losses_the_cheapest_choice_is_taken() -> None:
    model = network("odd norms")
    cost = PrefixCost.of_model(model, channel_flow(model, 4), tiny.splits())
    assert best_of_all(torch.ones([4] * len(cost.flow.convs)), cost, cost.dense) == (0, 0)


def test_a_budget_below_the_smallest_prefixes_is_refused_before_training() -> None:
    model, run = network("conv"), tiny.run(3)
    cost = PrefixCost.of_model(model, channel_flow(model, 4), tiny.splits())
    least = cost((0,)) / cost.dense
    with pytest.raises(ValueError, match="cannot be reached") as info:
        StaticPrefix(keep_multiplications=least - 0.01).prune(model, tiny.splits(), run)
    assert run.epochs_spent == 0
    named = float(str(info.value).partition("convs ")[2].split()[0])
    assert named == pytest.approx(least, abs=1e-4)
    StaticPrefix(keep_multiplications=named).prune(model, tiny.splits(), run)
