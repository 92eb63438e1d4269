"""Policy-gradient pruning: its rewards and gradient, and what its agents remove."""

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import baselines.channels.policy_gradient
from baselines import PolicyGradient
from baselines.channels.batch_norm_statistics import estimate_statistics
from baselines.channels.policy_gradient import Rewards, rewards
from baselines.channels.reinforce import (
    Agent,
    Remembered,
    advantages,
    at_least_one,
    highest,
    learn,
    reinforce_loss,
)
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import normalise
from testbed.training import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("dense", [0.8, 0.9])
def test_the_reward_is_what_is_left_of_the_bound_times_filters_over_filters_kept(
    dense: float,
) -> None:
    masks = torch.tensor([[True, True, True, True], [True, True, False, False]])
    # No drop at b = 2; then 1 of 2 points lost with half of the filters: (1 - 1/2) * 2.
    accuracies = torch.tensor([dense, dense - 0.01], dtype=torch.float64)
    assert rewards(accuracies, dense, 2.0, masks).tolist() == pytest.approx([1.0, 1.0])
    # The sign: a worse network earns less, one at the bound nothing, a better one no more than psi.
    at = torch.tensor([dense - 0.03, dense - 0.02, dense, dense + 0.01], dtype=torch.float64)
    half = masks[1].expand(4, -1)
    assert rewards(at, dense, 2.0, half).tolist() == pytest.approx([-1, 0, 2, 2], abs=1e-9)
    # With a larger bound the same drop costs less.
    assert rewards(at[:1], dense, 6.0, half[:1]).item() == pytest.approx(1.0)


def test_the_estimated_gradient_is_on_average_that_of_the_expected_advantage() -> None:
    scores = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor(list(itertools.product([False, True], repeat=3)))
    values = torch.tensor([-4.0, 0.5, 2.0, 1.0, -1.0, 3.0, 0.7, 1.0], dtype=torch.float64)

    def probabilities(scores: Tensor) -> Tensor:
        keep = scores.sigmoid()
        return torch.where(actions, keep, 1 - keep).prod(dim=1)

    p = probabilities(scores.detach())
    # By enumeration: how much more often each mask beats one drawn from the policy than it loses.
    beats = (values[:, None] - values).sign()
    (exact,) = torch.autograd.grad(probabilities(scores) @ (beats @ p), scores)
    mean = torch.zeros(3, dtype=torch.float64)
    for chosen in itertools.product(range(8), repeat=3):  # every outcome of three samples
        sampled = torch.tensor(chosen)
        loss = reinforce_loss(scores.sigmoid(), actions[sampled], advantages(values[sampled]))
        (gradient,) = torch.autograd.grad(loss, scores)
        mean -= p[sampled].prod() * gradient
    torch.testing.assert_close(mean, exact)


def test_reinforce_follows_the_expected_reward() -> None:
    """With the rewards themselves in place of advantages: the report's equation 4, enumerated."""
    scores = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([[False, False], [False, True], [True, False], [True, True]])
    values = torch.tensor([-4.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    keep = scores.sigmoid()
    p = torch.where(actions, keep, 1 - keep).prod(dim=1)
    (exact,) = torch.autograd.grad((p * values).sum(), scores, retain_graph=True)
    loss = 4 * reinforce_loss(keep, actions, p.detach() * values)
    (estimated,) = torch.autograd.grad(-loss, scores)
    torch.testing.assert_close(estimated, exact)


def test_an_advantage_is_how_many_others_are_beaten_less_those_that_beat() -> None:
    values = torch.tensor([1.0, 2.0, -60.0, 2.0])
    torch.testing.assert_close(advantages(values), torch.tensor([-1 / 3, 2 / 3, -1.0, 2 / 3]))
    assert advantages(torch.ones(5)).abs().sum() == 0
    assert advantages(values).sum().abs() < 1e-6


def test_where_no_filter_is_kept_the_largest_is() -> None:
    weight = torch.tensor([[1.0, 1.0], [-3.0, 0.0], [2.0, 0.0]])
    actions = torch.tensor([[False, False, False], [True, False, False]])
    assert at_least_one(actions, weight).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (7, 3, 5, 5), (64, 2, 1, 3)])
def test_an_agent_reads_any_number_of_filters_of_any_size(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    agent = Agent(weight, torch.Generator().manual_seed(1))
    keep = agent()
    assert keep.shape == shape[:1]
    assert keep.tolist() == [0.5] * shape[0]
    agent.decide.weight.data.fill_(50.0)
    keep = agent()
    assert ((keep > 0) & (keep < 1)).all() and keep.std() > 0  # told apart, never quite decided
    order = torch.arange(shape[0]).flip(0)
    agent.filters = agent.filters[order]
    torch.testing.assert_close(agent(), keep[order])  # each by its own weights alone


def test_what_earlier_layers_lost_is_not_charged_to_a_layer() -> None:
    """With all channels it is three points below the dense network; two channels do nothing."""
    masks = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    accuracies = Remembered(lambda m: (0.86 + 0.01 * m.double()[:, :2].prod(dim=1)).tolist(), 1)
    found = Rewards(accuracies, dense_accuracy=0.9, drop_bound=2.0)(masks)
    assert found.tolist() == pytest.approx([1, 2, (1 - 1 / 2) * 4])
    better = Rewards(accuracies, dense_accuracy=0.866, drop_bound=2.0)(masks)
    assert better.tolist() == pytest.approx([1, 2, (1 - 0.6 / 2) * 4])  # than the dense network


def test_an_accuracy_is_found_out_once() -> None:
    asked: list[Tensor] = []

    def accuracies(masks: Tensor) -> list[float]:
        asked.extend(masks)
        return [float(each) for each in masks.sum(dim=1)]

    remembered = Remembered(accuracies, images_per_mask=7)
    masks = torch.tensor([[True, False], [True, True], [True, False]])
    assert remembered(masks).tolist() == remembered(masks).tolist() == [1, 2, 1]
    assert len(asked) == 2 and remembered.n_images == 14


def test_it_removes_at_least_90_percent_of_channels_that_put_out_zero() -> None:
    data = tiny.splits(n_validation=192)
    torch.manual_seed(3)
    network: Any = build_backbone("conv", (2, 8, 8), 3, channels=(24, 12), batch_norm=True)
    train(network, data, tiny.LEARNING, seed=0, device=CPU)
    dead = torch.arange(24) % 2 == 1
    for parameter in (network.norm1.weight, network.norm1.bias):
        parameter.data[dead] = 0.0
    train(network, data, tiny.LEARNING, seed=0, device=CPU)
    for parameter in (network.norm1.weight, network.norm1.bias):
        parameter.data[dead] = 0.0
    marks = network.conv1.weight[:, 0, 0, 0].clone()
    method = PolicyGradient(layers="one", layer="conv1", drop_bound=0.5, steps=200)
    smaller = method.prune(network.eval(), data, tiny.run(0))
    kept = torch.isin(marks, smaller.conv1.weight[:, 0, 0, 0])
    assert kept[dead].double().mean() <= 0.1


def test_it_finds_the_channels_that_no_layer_of_a_residual_group_uses() -> None:
    data = tiny.splits(n_validation=192)
    network: Any = tiny.trained("residual").eval()
    dead = torch.tensor([1, 3, 4])
    with torch.no_grad():
        for layer in (network.stem, network.conv2):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
    train(network, data, tiny.LEARNING, seed=0, device=CPU)  # they get no gradient
    bounded = {"drop_bound": 0.5, "steps": 100, "reward_share": 0.7}
    # A refit could make up for others, too.
    method = PolicyGradient(layers="one", layer="stem", scope="all", refit=False, **bounded)
    smaller = method.prune(network, data, tiny.run(0))
    assert smaller.stem.out_channels == smaller.conv2.out_channels == 3
    assert (smaller.stem.weight.flatten(1) != 0).any(dim=1).all()
    x = normalise(data.validation.pixels, data.mean, data.std)
    for each in (smaller, network):
        estimate_statistics(each, [x])
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), network(x))


def ranks(values: list[float]) -> np.ndarray:
    """Ties get the mean of their ranks."""
    each = np.array(values)
    return (each[:, None] > each).sum(axis=1) + ((each[:, None] == each).sum(axis=1) - 1) / 2


def test_a_larger_drop_bound_keeps_fewer_multiplications() -> None:
    data = tiny.splits(384, 192, brighter=18)  # hard enough that channels matter
    bounds, costs = [], []
    for seed in range(3):
        network = tiny.network()
        learning = tiny.LEARNING.model_copy(update={"epochs": 8})
        train(network, data, learning, seed=seed, device=CPU)
        for bound in (0.5, 5.0, 50.0):
            method = PolicyGradient(drop_bound=bound, steps=20)
            pruned = method.prune(network, data, tiny.run(0, seed=seed))
            bounds.append(bound)
            costs.append(count_multiplications(pruned, torch.zeros(1, 2, 8, 8)).multiplications)
    assert np.corrcoef(ranks(bounds), ranks(costs))[0, 1] < -0.5


def test_what_is_kept_falls_strictly_with_the_drop_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each channel of a layer is worth some accuracy, most of them little."""

    def worth(*arguments: Any, **_: Any) -> Any:
        points = torch.linspace(0.05, 1, arguments[1][arguments[2]].channels).double() ** 2

        def evaluate(masks: Tensor) -> list[float]:
            return (0.9 - (~masks).double() @ points / 100).tolist()

        evaluate.images_per_mask = 1  # type: ignore[attr-defined]
        return evaluate

    monkeypatch.setattr(baselines.channels.policy_gradient, "evaluation_of_masks", worth)
    monkeypatch.setattr(baselines.channels.policy_gradient, "evaluate", lambda *_, **__: 0.9)
    kept = []
    for bound in (0.5, 1.0, 2.0, 3.0):
        method = PolicyGradient(drop_bound=bound, steps=60)
        pruned = method.prune(tiny.trained(), tiny.splits(), tiny.run(0))
        kept.append(count_multiplications(pruned, torch.zeros(1, 2, 8, 8)).multiplications)
    assert kept == sorted(set(kept), reverse=True)


def test_agents_find_the_best_mask_and_keep_fewer_filters_the_larger_the_bound() -> None:
    """Each filter is worth some accuracy; the best masks are those that brute force finds."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 3, 3, 3, generator=generator)
    points = torch.tensor([0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    every = torch.tensor(list(itertools.product([False, True], repeat=10))[1:])
    kept = []
    for bound in (0.5, 1.0, 2.0, 3.0):

        def reward(masks: Tensor, bound: float = bound) -> Tensor:
            accuracies = 0.9 - (~masks).double() @ points.double() / 100
            return rewards(accuracies, 0.9, bound, masks)

        masks = learn(weight, reward, samples=10, steps=60, seed=0)
        found = masks[reward(masks).argmax()]
        assert reward(found[None]) == reward(every).max()
        kept.append(int(found.sum()))
    assert kept == [9, 7, 5, 2]


def test_the_masks_to_choose_from_are_of_the_whole_learning() -> None:
    """An agent that fewer and fewer filters please: others may like what it liked on the way."""
    weight = torch.randn(40, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def reward(masks: Tensor) -> Tensor:
        return -masks.sum(dim=1).double()

    masks = learn(weight, reward, samples=10, steps=40, seed=0)
    kept = masks.sum(dim=1).tolist()
    probable, best_sampled, larger = kept[:20:2], kept[1:20:2], kept[20:]
    assert probable == sorted(probable, reverse=True)
    for on_the_way in (probable, best_sampled):
        assert on_the_way[0] > 8 and on_the_way[-1] < 5
    assert larger == sorted(larger) and larger[0] == probable[-1] and larger[-1] == 40
    assert len(larger) == 11
    assert all((small <= large).all() for small, large in pairwise(masks[20:]))


def test_the_larger_masks_add_filters_by_their_score() -> None:
    scores = torch.tensor([-7.0, 3.0, -6.0, 2.0])
    expected = [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert highest(scores, 1).int().tolist() == expected
    assert highest(scores, 4).int().tolist() == expected[-1:]


def test_a_decided_agent_still_ranks_its_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it keeps as few as it may, their probabilities are all alike."""
    ranked: list[Tensor] = []

    def spy(scores: Tensor, fewest: int) -> Tensor:
        ranked.append(scores)
        return highest(scores, fewest)

    monkeypatch.setattr("baselines.channels.reinforce.highest", spy)
    weight = torch.randn(40, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    learn(weight, lambda masks: -masks.sum(dim=1).double(), samples=10, steps=200, seed=0)
    (scores,) = ranked
    assert (scores < -5).sum() > 30, "decided"
    assert len(scores.unique()) == 40
