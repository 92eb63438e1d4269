"""Q-learning on Markov problems worked by hand."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from markov_problem import (
    Q_FIRST,
    Q_SECOND,
    WORKED,
    Problem,
    decision,
    generator,
    is_hard,
    quick,
    two_steps,
)
from pydantic import ValidationError
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.environment import batches
from rnp.learning.options import QLearning
from rnp.learning.qlearning import learn
from rnp.learning.rollout import epsilon_greedy, q_values, roll_out
from rnp.learning.targets import exact_returns, q_loss, rewards, td_targets
from testbed.training import DivergedError


def learned_values(network: DecisionNetwork, problem: Problem, actions: Sequence[int]) -> Tensor:
    """Q of image 0, which is easy, and image 1, along these actions: (2, T, n_actions)."""
    episodes = problem.start(torch.tensor([0, 1]))
    features = []
    for action in actions:
        seen = episodes.observe()
        assert seen is not None
        features.append(seen)
        episodes.act(torch.tensor([action, action]))
    return q_values(network, features)


def assert_learned(values: Tensor, expected: Tensor, learner: str, atol: float) -> None:
    """cost_to_go learns what an action brings more than others, and nothing that is alike."""
    if learner == "cost_to_go":
        values, expected = (each.diff(dim=-1) for each in (values, expected))
    torch.testing.assert_close(values, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"q_loss": "huber"},
        {"target_network": 20, "steps": 600},
        {"learner": "cost_to_go"},
        {"batch_size": 9},
    ],
    ids=str,
)
def test_the_values_learnt_are_those_worked_by_hand(options: dict[str, Any]) -> None:
    """Needs each image's own loss, a memory of the first step, negative values, and an end."""
    network = decision()
    exploring = {"epsilon": (1.0, 0.5)}  # so that every action in every state is learnt well
    learn(network, two_steps(), quick(**{**WORKED, **exploring, **options}), generator())
    for first in (0, 1):
        values = learned_values(network, two_steps(), [first, 0])
        for image, hard in enumerate((False, True)):
            expected = torch.tensor([Q_FIRST[hard], Q_SECOND[hard, first]])
            assert_learned(values[image], expected, options.get("learner", "td"), atol=0.03)


def test_under_weight_decay_images_share_the_values_that_biases_alone_can_tell() -> None:
    problem, free, decayed = two_steps(), decision(), decision()
    learn(free, problem, quick(**WORKED), generator())
    learn(decayed, problem, quick(**WORKED, q_weight_decay=100.0), generator())
    easy, hard = learned_values(free, problem, [1, 0])[:, 0]
    assert (easy - hard).abs().max() > 0.3
    values = learned_values(decayed, problem, [1, 0])
    assert torch.allclose(values[0], values[1], atol=0.01)
    assert values.mean() < -0.2, "biases are not decayed"


def test_a_memory_of_the_first_step_is_needed_where_the_second_shows_nothing() -> None:
    """Half the images must act otherwise, for a reason that only the first step showed."""
    problem = Problem(
        [
            lambda images, _: is_hard(images)[:, None].float(),
            lambda images, _: images[:, None] * 0.0,
        ],
        lambda images, actions: (actions[:, 1] != is_hard(images)).float(),
    )
    network = decision()
    learn(network, problem, quick(alpha=1.0, p=-0.1, steps=400), generator())
    played = roll_out(network, problem.start(torch.arange(10)), 0.0, generator())
    assert played.actions.tolist() == [[0, 0], [0, 1]] * 5


def test_how_hard_an_image_is_does_not_hide_what_an_action_saves() -> None:
    """Nothing tells how hard; it is up to a hundred times what one image in two saves by acting."""
    hard = 20 * torch.rand(1000, generator=generator(1))

    def losses(images: Tensor, actions: Tensor) -> Tensor:
        return 1 + hard[images] + 0.2 * (actions[:, 0] == 0) * is_hard(images)

    problem = Problem([lambda images, _: is_hard(images)[:, None].float()], losses, 1000)
    network = decision(features=(1,))
    options = quick(learner="cost_to_go", p=-0.1, alpha=1.0, steps=100, batch_size=16)
    learn(network, problem, options, generator())
    played = roll_out(network, problem.start(torch.arange(10)), 0.0, generator())
    assert played.actions.flatten().tolist() == [0, 1] * 5


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
def test_a_chain_of_four_steps_is_discounted_at_each(learner: str) -> None:
    """The first action doubles the loss of 1, the others only cost."""
    problem = Problem(
        [lambda images, _: torch.zeros(len(images), 1)]
        + [lambda _, actions: actions[:, :1].float()] * 3,
        lambda _, actions: 1.0 + actions[:, 0],
    )
    network = decision(features=(1, 1, 1, 1))
    options = quick(alpha=1.0, p=-0.3, gamma=0.8, learner=learner, batch_size=4)
    learn(network, problem, options, generator())
    values = learned_values(network, problem, [0, 0, 0, 0])[0]
    best = [-(0.8 ** (3 - step)) for step in range(4)]
    expected = torch.tensor([[value, value - 0.3] for value in best])
    expected[0, 1] -= 0.8**3  # and the loss is doubled
    assert_learned(values, expected, learner, atol=0.04)


def test_rewards_are_the_penalty_of_each_action_and_at_the_end_each_images_own_loss() -> None:
    actions = torch.tensor([[0, 3], [2, 1]])
    losses = torch.tensor([0.5, 4.0])
    expected = [[0.0, -0.3 - 1.0], [-0.2, -0.1 - 8.0]]
    torch.testing.assert_close(
        rewards(actions, losses, torch.full((actions.shape[1],), -0.1), 2.0), torch.tensor(expected)
    )


def test_the_target_is_the_reward_and_the_discounted_best_value_of_the_next_step() -> None:
    reward = torch.tensor([[-0.1, -0.2, -3.0], [0.0, -0.3, -1.0]])
    values = torch.tensor(
        [[[9.0, 9.0], [-1.0, -2.0], [-5.0, -4.0]], [[9.0, 9.0], [-0.5, -0.25], [-2.0, -8.0]]]
    )
    expected = [[-0.1 - 0.9, -0.2 - 3.6, -3.0], [-0.225, -0.3 - 1.8, -1.0]]
    torch.testing.assert_close(td_targets(reward, values, 0.9), torch.tensor(expected))


def test_nothing_follows_the_last_step() -> None:
    reward = torch.tensor([[-0.1, -0.7]])
    for filler in (100.0, math.nan):
        values = torch.full((1, 2, 4), filler)
        assert td_targets(reward, values, 1.0)[:, -1].tolist() == reward[:, -1].tolist()
    one_step = td_targets(torch.tensor([[-2.0]]), torch.full((1, 1, 4), 50.0), 1.0)
    assert one_step.tolist() == [[-2.0]]


def test_targets_are_constants_and_values_below_zero_are_not_cut() -> None:
    values = torch.full((3, 2, 4), -6.0, requires_grad=True)
    targets = td_targets(torch.zeros(3, 2), values, 1.0)
    assert not targets.requires_grad
    assert targets[:, 0].tolist() == [-6.0, -6.0, -6.0]


def test_the_loss_is_the_mean_of_each_images_errors() -> None:
    """Errors of opposite sign do not make up for each other, as they would in a batch mean."""
    predicted = torch.tensor([[0.0, 1.0], [0.0, -3.0]])
    assert q_loss(predicted, torch.zeros(2, 2), "squared").item() == pytest.approx(10 / 4)
    assert q_loss(predicted, torch.zeros(2, 2), "huber").item() == pytest.approx((0.5 + 2.5) / 4)
    assert q_loss(torch.tensor([1.0, -1.0]), torch.zeros(2), "squared").item() == 1.0


def test_gradients_flow_back_through_the_memory_to_the_first_layers_encoder() -> None:
    network = decision()
    played = roll_out(network, two_steps().start(torch.arange(8)), 1.0, generator())
    played.values[:, 1].sum().backward()
    gradient = network.get_parameter("encoders.0.weight").grad
    assert gradient is not None and (gradient != 0).any()


def test_with_a_target_network_the_next_value_is_the_copys() -> None:
    """It is copied before the first step, and never again here."""
    network = decision()
    first = copy.deepcopy(network)
    problem = two_steps()
    learn(network, problem, quick(**WORKED, target_network=10_000), generator())
    first.load_state_dict({**first.state_dict(), **dict(network.named_buffers())})
    for action in (0, 1):
        next_value = learned_values(first, problem, [action, 0])[:, 1].amax(dim=1)
        values = learned_values(network, problem, [action, 0])[:, 0, action]
        expected = action * -0.2 + 0.5 * next_value
        torch.testing.assert_close(values, expected, atol=0.03, rtol=0)


def test_the_cost_to_go_is_that_of_the_present_policy_not_of_the_best() -> None:
    network = decision(n_actions=3, features=(2, 2, 2))
    table = torch.rand(5, 27, generator=generator(3))

    def column(actions: Tensor) -> Tensor:
        return (actions * 3 ** torch.arange(actions.shape[1])).sum(dim=1)

    def features(images: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([images.float(), column(actions).float()], dim=1)

    problem = Problem([features] * 3, lambda images, actions: table[images, column(actions)], 5)
    options = QLearning(p=-0.3, gamma=0.7)
    images = torch.arange(5)
    played = roll_out(network, problem.start(images), 1.0, generator())
    returns = exact_returns(
        network, problem.start(images), played, torch.full((3,), options.p), 4.0, options.gamma
    )
    assert returns.shape == (5, 3, 3)
    is_best = []
    for image, step, action in itertools.product(range(5), range(3), range(3)):
        chosen = [*played.actions[image, :step].tolist(), action]
        best = min(
            _return(table[image], [*chosen, *rest], step)
            for rest in itertools.product(range(3), repeat=2 - step)
        )
        while len(chosen) < 3:
            seen = [
                features(torch.tensor([image]), torch.tensor([chosen[:n]], dtype=torch.int64))
                for n in range(len(chosen) + 1)
            ]
            chosen.append(int(q_values(network, seen)[0, -1].argmax()))
        expected = _return(table[image], chosen, step)
        assert returns[image, step, action].item() == pytest.approx(expected, abs=1e-5)
        is_best.append(expected == best)
    assert not all(is_best)


def _return(losses: Tensor, actions: Sequence[int], step: int) -> float:
    """The discounted rewards from `step` on, of one image."""
    penalties = sum(0.7 ** (t - step) * -0.3 * actions[t] for t in range(step, 3))
    column = sum(action * 3**t for t, action in enumerate(actions))
    return penalties - 0.7 ** (2 - step) * 4.0 * losses[column].item()


def test_epsilon_falls_from_1_to_a_tenth_and_stays_there() -> None:
    options = QLearning(steps=1000)
    assert [options.epsilon_at(step) for step in (0, 300, 600, 601, 999)] == pytest.approx(
        [1.0, 0.55, 0.1, 0.1, 0.1]
    )
    assert min(options.epsilon_at(step) for step in range(1000)) >= 0.1 - 1e-12
    other = QLearning(steps=100, epsilon=(0.8, 0.0), exploration=1.0)
    assert [other.epsilon_at(step) for step in (0, 50, 100)] == pytest.approx([0.8, 0.4, 0.0])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7, 1.0])
def test_each_image_explores_by_itself_with_probability_epsilon(epsilon: float) -> None:
    n = 40_000
    values = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(n, 4)
    actions = epsilon_greedy(values, epsilon, generator())
    shares = torch.bincount(actions, minlength=4) / n
    others = epsilon / 4
    torch.testing.assert_close(
        shares, torch.tensor([others, 1 - 3 * others, others, others]), atol=0.01, rtol=0
    )


def test_greedy_actions_are_each_images_own() -> None:
    values = torch.tensor([[0.0, -1.0], [-3.0, -2.0], [-7.0, -9.0]])
    assert epsilon_greedy(values, 0.0, generator()).tolist() == [0, 1, 0]


def test_learning_explores_as_epsilon_says() -> None:
    """With a price that nothing pays, the best action is 0, and others are exploration."""
    problem = two_steps()
    options = quick(alpha=1.0, p=-10.0, exploration=0.5)
    learn(decision(), problem, options, generator())
    shares = [episodes.actions.double().mean().item() for episodes in problem.played[-400:]]
    at_first, at_last = sum(shares[:10]) / 10, sum(shares[-200:]) / 200
    assert at_first == pytest.approx(0.5, abs=0.08)  # half of the random actions are 1
    assert at_last == pytest.approx(0.1 / 2, abs=0.015)


def test_without_alpha_losses_weigh_1_in_the_mean_over_random_actions() -> None:
    reports: list[Mapping[str, float]] = []
    learned = learn(decision(), two_steps(4000), quick(steps=1), generator(), reports.append)
    mean = (0.1 + (1.0 + 0.5 + 1.0 + 0.1) / 4) / 2
    assert learned.alpha * mean == pytest.approx(1, rel=0.03)
    assert learned.penalty_in_cross_entropy == pytest.approx(0.1 / learned.alpha)
    assert reports[0] == {"alpha": learned.alpha}
    assert learned.p == reports[1]["p"] == -0.1
    assert reports[1]["penalty_in_cross_entropy"] == learned.penalty_in_cross_entropy


def test_alpha_that_is_given_is_used() -> None:
    learned = learn(decision(), two_steps(), quick(steps=1, p=-0.3, alpha=6.0), generator())
    assert (learned.alpha, learned.penalty_in_cross_entropy) == (6.0, pytest.approx(0.05))


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_alpha_cannot_be_set_from_losses_that_are_nothing(loss: float) -> None:
    problem = Problem(two_steps().features, lambda images, _: images * 0.0 + loss)
    with pytest.raises(ValueError, match="Give alpha itself"):
        learn(decision(), problem, quick(), generator())


def test_losses_that_are_not_finite_stop_the_learning() -> None:
    problem = Problem(two_steps().features, lambda images, _: images * math.nan)
    with pytest.raises(DivergedError, match="q_learning_rate"):
        learn(decision(), problem, quick(alpha=1.0), generator())


def test_features_are_standardised_by_examples_of_random_actions() -> None:
    network = decision()
    learn(network, two_steps(2000), quick(steps=1), generator())
    for step in (0, 1):  # half the images are hard, half the first actions are 1
        assert network.get_buffer(f"mean{step}").item() == pytest.approx(0.5, abs=0.05)
        assert network.get_buffer(f"deviation{step}").item() == pytest.approx(0.5, abs=0.01)


def test_progress_is_reported_some_ten_times_and_returns_rise() -> None:
    reports: list[Mapping[str, float]] = []
    learn(decision(), two_steps(), quick(**WORKED), generator(), reports.append)
    progress = reports[1:]
    assert [report["q_step"] for report in progress] == list(range(40, 401, 40))
    assert progress[-1]["q_loss"] < progress[0]["q_loss"]
    assert progress[-1]["mean_return"] > progress[0]["mean_return"]
    # Undiscounted, the best is -0.2 for easy and -0.2 - 0.4 for hard images.
    assert progress[-1]["mean_return"] == pytest.approx(-0.4, abs=0.1)
    assert progress[-1]["epsilon"] == pytest.approx(0.1)


@pytest.mark.parametrize(("n_images", "size"), [(10, 4), (3, 8), (5, 5)])
def test_each_image_comes_once_before_any_comes_again(n_images: int, size: int) -> None:
    drawn = batches(n_images, size, generator())
    images = torch.cat([next(drawn) for _ in range(n_images)])
    assert len(images) == n_images * size
    for epoch in images.split(n_images):
        assert sorted(epoch.tolist()) == list(range(n_images))
    assert images[:n_images].tolist() != images[n_images : 2 * n_images].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.1},
        {"alpha": 0.0},
        {"gamma": 1.1},
        {"steps": 0},
        {"epsilon": (1.5, 0.1)},
        {"exploration": 0.0},
        {"learner": "sarsa"},
        {"q_loss": "absolute"},
        {"penalty": -0.1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QLearning(**options)


def test_every_option_says_what_it_is() -> None:
    for name, field in QLearning.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
def test_a_dear_step_is_spared_before_a_cheap_one(learner: Any) -> None:
    """Either second action saves 1 of the loss; it costs 0.6, or 1.2 first and 0.1 then."""

    def losses(images: Tensor, actions: Tensor) -> Tensor:
        return 0.5 + (actions == 0).float().sum(dim=1)

    def action_before(images: Tensor, actions: Tensor) -> Tensor:
        return actions.sum(dim=1, keepdim=True).float()

    problem = Problem([action_before, action_before], losses)
    chosen = {}
    for name, price in (("even", None), ("dear first", torch.tensor([2.0, 0.2]))):
        torch.manual_seed(0)
        network = DecisionNetwork([1, 1], 2, 4, 8)
        options = QLearning(
            p=-0.6, alpha=1.0, steps=600, batch_size=32, q_learning_rate=1e-2, learner=learner
        )
        learn(network, problem, options, torch.Generator().manual_seed(0), price=price)
        played = roll_out(network, problem.start(torch.arange(4)), 0.0, torch.Generator())
        chosen[name] = played.actions[0].tolist()
    assert chosen == {"even": [1, 1], "dear first": [0, 1]}
