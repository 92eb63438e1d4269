"""Learning for a budget begins at the best actions that are the same for all images."""

from itertools import product

import pytest
import torch
from markov_problem import Problem, decision, generator, quick
from torch import Tensor

from rnp.learning.budget import LEAST, Budget
from rnp.learning.loss_table import LossTable
from rnp.learning.qlearning import learn
from rnp.learning.rollout import roll_out
from rnp.learning.start import Start, best_fixed

ALONE_OR_TOGETHER = {
    (0, 0, 0): 1.2, (1, 0, 0): 0.3, (0, 1, 0): 1.0, (0, 0, 1): 1.0,
    (0, 1, 1): 0.1, (1, 0, 1): 0.2, (1, 1, 0): 0.2, (1, 1, 1): 0.0,
}  # fmt: skip
"""Of the three the first step is worth least with the others, and most without them."""


class ThreeSteps:
    """A network whose dense multiplications are 3; each step saves one or none."""

    dense = 3

    def of_images(self, actions: Tensor) -> Tensor:
        return actions.sum(dim=1).double()


def table(losses: Tensor) -> LossTable:
    """As much of a table as a start is found from."""
    found = LossTable.__new__(LossTable)
    found.losses, found.n_actions = losses, 2
    found.features = [torch.zeros(1)] * (losses.shape[1].bit_length() - 1)
    return found


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
def test_the_start_is_the_best_of_all_fixed_actions_within_the_budget(share: float) -> None:
    losses = torch.rand(5, 8, generator=generator())
    price = torch.tensor([1.0, 0.5, 2.0])
    start = best_fixed(table(losses), Budget(ThreeSteps(), share), price)
    means = dict(zip(product((0, 1), repeat=3), losses.double().mean(dim=0).tolist(), strict=True))
    allowed = [actions for actions in means if sum(actions) <= 3 * share]
    assert start.actions == min(allowed, key=means.__getitem__)
    for step in range(3):
        off, on = ((*start.actions[:step], a, *start.actions[step + 1 :]) for a in (0, 1))
        assert start.gains[step].item() == pytest.approx(means[off] - means[on])


def test_the_first_penalty_lies_between_what_is_bought_and_what_is_not() -> None:
    start = best_fixed(table(by_column()), Budget(ThreeSteps(), 1 / 3), torch.ones(3))
    assert start.actions == (1, 0, 0)
    assert start.gains.tolist() == pytest.approx([0.9, 0.1, 0.1])
    assert start.penalty == pytest.approx(0.5)


def test_a_network_begins_with_the_fixed_actions_for_all_images() -> None:
    network = decision(features=[1, 1, 1])
    start = Start((1, 0, 0), torch.tensor([0.9, 0.1, 0.3], dtype=torch.float64), 0.5)
    price = torch.tensor([1.0, 2.0, 1.0])
    assert start.begin(network, 2.0, price) == pytest.approx(1.0)
    state = None
    for step, worth in enumerate((0.4, -0.9, -0.2)):
        values, state = network(step, torch.randn(6, 1, generator=generator()), state)
        assert (values[:, 1] - values[:, 0]).tolist() == pytest.approx([2 * worth] * 6)
    nothing = Start((0,), torch.tensor([-0.2], dtype=torch.float64), -0.2)
    assert nothing.begin(decision(features=[1]), 1.0, torch.ones(1)) == LEAST


def test_it_begins_there_though_another_step_would_save_more_beside_it() -> None:
    losses = torch.tensor([[1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.3, 0.3]])
    start = best_fixed(table(losses), Budget(ThreeSteps(), 1 / 3), torch.ones(3))
    assert start.actions == (1, 0, 0)
    assert start.gains.tolist() == pytest.approx([0.2, 0.5, 0.0])
    network, state, begun = decision(features=[1, 1, 1]), None, []
    start.begin(network, 1.0, torch.ones(3))
    for step in range(3):
        values, state = network(step, torch.zeros(1, 1), state)
        begun.append(int(values.argmax()))
    assert begun == [1, 0, 0]


@pytest.mark.parametrize("from_best", [True, False])
def test_steps_that_are_best_without_the_others_are_found_from_the_best_fixed_ones_alone(
    from_best: bool,
) -> None:
    def losses(images: Tensor, actions: Tensor) -> Tensor:
        columns = (actions * torch.tensor([4, 2, 1])).sum(dim=1)
        return by_column()[0, columns].expand(len(images))

    def blank(images: Tensor, _: Tensor) -> Tensor:
        return torch.zeros(len(images), 1)

    problem, budget = Problem([blank] * 3, losses), Budget(ThreeSteps(), 1 / 3)
    options = quick(keep_multiplications=1 / 3, learner="cost_to_go", steps=20)
    start = best_fixed(table(by_column()), budget, torch.ones(3)) if from_best else None
    network = decision(features=[1, 1, 1])
    network.favour_all()
    learned = learn(network, problem, options, generator(), budget=budget, start=start)

    def taken() -> Tensor:
        return roll_out(network, problem.start(torch.arange(4)), 0.0, generator()).actions

    budget.settle(network, taken, -learned.p, torch.ones(3))
    assert (taken() == torch.tensor([1, 0, 0])).all() == from_best


def by_column() -> Tensor:
    """The losses of one image, (1, 8), in a table's order."""
    return torch.tensor([[ALONE_OR_TOGETHER[a] for a in product((0, 1), repeat=3)]])
