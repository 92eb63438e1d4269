"""The penalty found for a budget is the price that spends it."""

from itertools import product
from typing import Any

import pytest
import tiny
import torch
from pydantic import ValidationError
from test_qlearning import Problem, decision, generator, quick
from torch import Tensor

from rnp import RNP, RuntimeNetwork
from rnp.budget import Budget
from rnp.prefix_cost import PrefixCost
from rnp.qlearning import QLearning, learn
from rnp.runtime_neural_pruning import decide
from testbed.cost import count_multiplications

SMALL: dict[str, Any] = {"encoding": 2, "hidden": 2, "rounds": 1}


class OneStep:
    """A network whose dense multiplications are 1, of which its one decision saves all or none."""

    dense = 1

    def of_images(self, actions: Tensor) -> Tensor:
        return actions.sum(dim=1).float()


def images_of_many_worths() -> Problem:
    """Image i of 64 shows what its second action saves of the loss: (i + 1) / 64."""

    def worth(images: Tensor, _: Tensor) -> Tensor:
        return ((images + 1) / 64)[:, None]

    def losses(images: Tensor, actions: Tensor) -> Tensor:
        return 1 - actions[:, 0] * worth(images, actions)[:, 0]

    return Problem([worth], losses)


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_price_is_the_worth_of_the_image_at_the_margin(share: float, learner: str) -> None:
    options = quick(
        keep_multiplications=share, alpha=2.0, learner=learner, steps=1500, batch_size=64
    )
    network, problem = decision(features=[1]), images_of_many_worths()
    budget = Budget(OneStep(), share)  # type: ignore[arg-type]
    learned = learn(network, problem, options, generator(), budget=budget)
    assert learned.penalty_in_cross_entropy == pytest.approx(1 - share, rel=0.1)
    assert learned.p == pytest.approx(-2.0 * learned.penalty_in_cross_entropy)
    worths = torch.arange(1, 65)[:, None] / 64
    bought = network(0, worths)[0].argmax(dim=1)
    assert bought.float().mean().item() == pytest.approx(share, abs=0.07)
    assert torch.equal(bought, bought.sort().values), "those that it is worth most to"


def test_the_penalty_rises_while_too_much_is_spent_and_falls_while_too_little_is() -> None:
    budget = Budget(OneStep(), 0.5)  # type: ignore[arg-type]
    penalty = torch.tensor(0.1, dtype=torch.float64)
    all_bought, half, none = (torch.tensor([[a], [b]]) for a, b in ((1, 1), (0, 1), (0, 0)))
    dearer = budget.adjusted(penalty, all_bought, 0.0, 100)
    assert dearer > penalty
    assert budget.adjusted(penalty, half, 0.0, 100) == penalty
    assert budget.adjusted(penalty, none, 0.0, 100) * dearer == pytest.approx(penalty**2)
    assert penalty < budget.adjusted(penalty, all_bought, 0.9, 100) < dearer, "ever smaller steps"


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_the_cost_of_images_is_the_closed_form_of_each_and_what_is_counted(kind: str) -> None:
    network = RuntimeNetwork(tiny.network(kind)).eval()
    cost = PrefixCost.of_runtime(network, tiny.splits())
    taken = list(product(range(4), repeat=len(network.flow.convs)))
    assert cost.of_images(torch.tensor(taken)).tolist() == [cost(actions) for actions in taken]
    images = tiny.splits().validation.pixels[:8].float() / 255
    decided = [tuple(row) for row in decide(network, images).tolist()]
    counted = [count_multiplications(network, image[None]).multiplications for image in images]
    assert counted == [cost(actions) for actions in decided]


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
def test_a_network_costs_what_its_budget_allows(learner: str) -> None:
    images = (tiny.splits().validation.pixels.float() / 255 - 0.4) / 0.2
    dense = count_multiplications(tiny.network(), images[:1]).multiplications
    spent = []
    for share in (0.45, 0.8):
        method = RNP(keep_multiplications=share, learner=learner, steps=300, **SMALL)
        network = method.prune(tiny.network(), tiny.splits(), tiny.run(2))
        relearnt = method.relearn(network, tiny.splits(), tiny.run(2))
        spent.append(count_multiplications(relearnt, images).multiplications / dense)
        assert spent[-1] <= share
    assert spent[0] < spent[1]


def test_images_that_look_all_the_same_get_no_more_than_the_budget() -> None:
    """At one price all would buy, at the next none; half are not to be had."""
    problem = Problem(
        [lambda images, _: torch.zeros(len(images), 1)],
        lambda _, actions: 1 - 0.5 * actions[:, 0].float(),
    )
    network, budget = decision(features=[1]), Budget(OneStep(), 0.5)  # type: ignore[arg-type]
    options = quick(keep_multiplications=0.5, alpha=1.0, steps=1200)
    learned = learn(network, problem, options, generator(), budget=budget)
    budget.settle(network, problem, -learned.p, generator())
    assert learned.p == pytest.approx(-0.5, rel=0.1), "where the price is what the group is worth"
    assert network(0, torch.zeros(64, 1))[0].argmax(dim=1).tolist() == [0] * 64


def test_a_budget_below_the_smallest_prefixes_is_refused_before_training() -> None:
    run = tiny.run(4)
    with pytest.raises(ValueError, match=r"keep_multiplications 0\.01 cannot be reached"):
        RNP(keep_multiplications=0.01, **SMALL).prune(tiny.network(), tiny.splits(), run)
    assert run.epochs_spent == 0


@pytest.mark.parametrize(
    "options", [{"p": -0.1, "keep_multiplications": 0.5}, {"p": None, "keep_multiplications": None}]
)
def test_a_penalty_or_a_budget_is_given(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give one of p and keep_multiplications"):
        RNP(**options)


def test_the_papers_penalty_is_the_default_where_there_is_no_budget() -> None:
    assert QLearning().p == -0.1
    assert QLearning(keep_multiplications=0.5).p is None
    for method in (RNP(), RNP(keep_multiplications=0.5)):
        as_in_a_sweep_file = method.model_dump_json()
        assert RNP.model_validate_json(as_in_a_sweep_file, strict=True) == method


def test_with_a_budget_the_decisions_are_learnt_last() -> None:
    reports: list[Any] = []
    method = RNP(keep_multiplications=0.6, steps=20, **SMALL)
    method.prune(tiny.network(), tiny.splits(), tiny.run(2, reports=reports))
    assert [report["round"] for report in reports if "round" in report] == [1, 2]
