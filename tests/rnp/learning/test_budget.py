"""The penalty found for a budget is the price that spends it."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from markov_problem import Problem, decision, generator, quick, two_steps
from pydantic import ValidationError
from torch import Tensor

from rnp import RNP, DecisionNetwork, RuntimeNetwork
from rnp.learning.budget import LEAST, Budget
from rnp.learning.environment import BackboneEpisodes
from rnp.learning.loss_table import passes_per_image
from rnp.learning.qlearning import learn
from rnp.learning.rollout import roll_out
from rnp.prefix_cost import PrefixCost
from rnp.runtime_neural_pruning import decide
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications

SMALL: dict[str, Any] = {"encoding": 2, "hidden": 2, "rounds": 1}


def greedily(network: DecisionNetwork, problem: Problem) -> Callable[[], Tensor]:
    """Plays all images of a problem by the values as they are then."""
    images = torch.arange(problem.n_images)
    return lambda: roll_out(network, problem.start(images), 0.0, generator()).actions


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
    options = quick(keep_multiplications=share, learner=learner, steps=1500, batch_size=64)
    network, problem = decision(features=[1]), images_of_many_worths()
    budget = Budget(OneStep(), share)
    learned = learn(network, problem, options, generator(), budget=budget)
    assert learned.penalty_in_cross_entropy == pytest.approx(1 - share, rel=0.1)
    assert learned.p == pytest.approx(-learned.alpha * learned.penalty_in_cross_entropy)
    worths = torch.arange(1, 65)[:, None] / 64
    bought = network(0, worths)[0].argmax(dim=1)
    assert bought.float().mean().item() == pytest.approx(share, abs=0.07)
    assert torch.equal(bought, bought.sort().values), "those that it is worth most to"


def test_the_penalty_rises_while_too_much_is_spent_and_falls_while_too_little_is() -> None:
    budget = Budget(OneStep(), 0.5)
    penalty = torch.tensor(0.1, dtype=torch.float64)
    all_bought, half, none = (torch.tensor([[a], [b]]) for a, b in ((1, 1), (0, 1), (0, 0)))
    assert budget.adjusted(penalty, all_bought, 0.1) == penalty, "Q means nothing yet"
    dearer = budget.adjusted(penalty, all_bought, 0.2)
    assert dearer > penalty
    assert budget.adjusted(penalty, half, 0.2) == penalty
    assert budget.adjusted(penalty, none, 0.2) * dearer == pytest.approx(penalty**2)
    assert penalty < budget.adjusted(penalty, all_bought, 0.9) < dearer, "ever smaller steps"
    for _ in range(1000):
        penalty = budget.adjusted(penalty, none, 0.2)
    assert penalty == LEAST


def test_the_penalty_moves_by_the_share_of_the_room_that_there_is_on_either_side() -> None:
    """Of the dense cost, 0.3 is always spent and the budget is 0.9: the room is 0.1 and 0.6."""

    class Mostly(OneStep):
        def of_images(self, actions: Tensor) -> Tensor:
            return 0.3 + 0.7 * actions.double().sum(dim=1)

    penalty = torch.tensor(0.1, dtype=torch.float64)
    budget = Budget(Mostly(), 0.9)
    too_much = budget.adjusted(penalty, torch.ones(1, 1, dtype=torch.int64), 0.5)
    too_little = budget.adjusted(penalty, torch.zeros(1, 1, dtype=torch.int64), 0.5)
    assert (too_much / penalty).log() == pytest.approx(-(too_little / penalty).log().item())
    at_the_end = Budget(Mostly(), 1.0 - 1e-6)
    assert at_the_end.adjusted(penalty, torch.ones(1, 1, dtype=torch.int64), 0.5) < too_much


def fixed_values(*rows: tuple[float, float]) -> tuple[DecisionNetwork, Problem]:
    """A decision network that gives image i the Q-values of row i, and its one-step problem."""
    network = DecisionNetwork([1], 2, encoding=2, hidden=2)

    def forward(step: int, features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        images = features[:, 0].long()
        return torch.tensor(rows)[images] + network.offsets[step], torch.zeros(len(images), 2)

    network.forward = forward  # type: ignore[method-assign]
    problem = Problem(
        [lambda images, _: images[:, None].float()], lambda images, _: images.float(), len(rows)
    )
    return network, problem


@pytest.mark.parametrize(
    ("share", "bought"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 3)]
)
def test_what_is_worth_most_is_bought_and_nothing_that_is_worth_less_than_nothing(
    share: float, bought: int
) -> None:
    """Second actions are worth 40, 3, 0.5 and -2 beyond their price of 1."""
    worths = (3.0, -2.0, 40.0, 0.5)
    network, problem = fixed_values(*((0.0, worth) for worth in worths))
    budget = Budget(OneStep(), share)
    settled = budget.settle(network, greedily(network, problem), 1.0, torch.ones(1))
    values, _ = network(0, torch.arange(4.0)[:, None])
    taken = values.argmax(dim=1).tolist()
    dearest = sorted(worths, reverse=True)[:bought]
    assert [worth for worth, action in zip(worths, taken, strict=True) if action] == [
        worth for worth in worths if worth in dearest
    ]
    torch.testing.assert_close(values[:, 1] - values[:, 0], torch.tensor(worths) + 1.0 - settled)
    assert (settled == 0.0) == (share >= 0.75), "then all three are bought, and they are free"


class TwoSteps:
    """The second action of the first conv costs a tenth of the dense multiplications, of the second
    conv the rest."""

    dense = 1

    def of_images(self, actions: Tensor) -> Tensor:
        return actions.float() @ torch.tensor([0.1, 0.9])


def test_the_groups_of_dear_convs_are_bought_too_where_the_penalty_was_learnt_too_high() -> None:
    """However cheap those of the other convs are."""
    network = DecisionNetwork([1, 1], 2, encoding=2, hidden=2)
    worths, price = torch.tensor([0.5, 0.7]), torch.tensor([0.2, 1.8])

    def forward(step: int, features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """As it was learnt with a penalty of 1."""
        values = torch.tensor([0.0, worths[step] - price[step]]) + network.offsets[step]
        return values.expand(len(features), 2), torch.zeros(len(features), 2)

    network.forward = forward  # type: ignore[method-assign]
    problem = Problem([lambda images, _: torch.zeros(len(images), 1)] * 2, lambda images, _: images)
    budget = Budget(TwoSteps(), 1.0)
    assert budget.settle(network, greedily(network, problem), 1.0, price) == 0.0
    values = torch.stack([network(step, torch.zeros(1, 1))[0][0] for step in range(2)])
    gained = values[:, 1] - values[:, 0]
    torch.testing.assert_close(gained, worths, msg="free, each by its own price")


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


@pytest.mark.parametrize(
    ("share", "price", "learner"),  # every two of them together once
    [
        (0.5, "group", "td"),
        (0.5, "multiplications", "cost_to_go"),
        (0.8, "group", "cost_to_go"),
        (0.8, "multiplications", "td"),
    ],
)
def test_a_network_spends_its_budget_on_validation_images(
    share: float, price: str, learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups are worth something: the loss falls with every one, most for bright images."""

    def losses(episodes: BackboneEpisodes) -> Tensor:
        computed = torch.stack(episodes.run.actions, dim=1).float().mean(dim=1)
        return 1 - episodes.run.images.mean(dim=(1, 2, 3)).sigmoid() * computed / 3

    monkeypatch.setattr(BackboneEpisodes, "losses", property(losses))
    data = tiny.splits()
    images = (data.validation.pixels.float() / 255 - 0.4) / 0.2
    torch.manual_seed(0)
    model = build_backbone("conv", (2, 8, 8), 3, channels=(8, 24, 24), hidden=10)
    dense = count_multiplications(model, images[:1]).multiplications
    options = {"encoding": 8, "hidden": 8, "rounds": 1, "batch_size": 64, "learner": learner}
    options |= {"price": price, "steps": 600, "q_learning_rate": 1e-2}
    method = RNP(keep_multiplications=share, **options)
    run, reports = tiny.run(2, reports=(reports := [])), reports
    # So that the values that were learnt still hold for what the fine-tuning makes of the backbone.
    run.fine_tuning = run.fine_tuning.model_copy(update={"learning_rate": 1e-3})
    network = method.prune(model, data, run)
    spent = count_multiplications(network, images).multiplications / dense
    assert share - 0.03 < spent <= share
    last = [report for report in reports if "round" in report][-1]
    assert sum(list(report) == ["alpha"] for report in reports) == 1, (
        "nothing is learnt anew for it"
    )
    assert last["p"] < 0 and last["penalty_in_cross_entropy"] == -last["p"] / last["alpha"]
    assert last["q_learning_epochs"] > passes_per_image(network, data), "to settle it counts too"


def test_the_decisions_learnt_anew_meet_another_budget() -> None:
    data, method = tiny.splits(), RNP(keep_multiplications=0.9, steps=50, **SMALL)
    network = method.prune(tiny.network(), data, tiny.run(2))
    assert isinstance(network, RuntimeNetwork)
    less = method.model_copy(update={"keep_multiplications": 0.6})
    images = (data.validation.pixels.float() / 255 - 0.4) / 0.2
    dense = count_multiplications(tiny.network(), images[:1]).multiplications
    spent = count_multiplications(less.relearn(network, data, tiny.run(0)), images).multiplications
    assert spent <= 0.6 * dense < count_multiplications(network, images).multiplications


def test_images_that_look_all_the_same_get_no_more_than_the_budget() -> None:
    """At one price all would buy, at the next none; half are not to be had."""
    problem = Problem(
        [lambda images, _: torch.zeros(len(images), 1)],
        lambda _, actions: 1 - 0.5 * actions[:, 0].float(),
    )
    network, budget = decision(features=[1]), Budget(OneStep(), 0.5)
    options = quick(keep_multiplications=0.5, steps=1200)
    learned = learn(network, problem, options, generator(), budget=budget)
    budget.settle(network, greedily(network, problem), -learned.p, torch.ones(1))
    worth = pytest.approx(0.5, rel=0.1)
    assert learned.penalty_in_cross_entropy == worth, "the price is what the group is worth"
    assert network(0, torch.zeros(64, 1))[0].argmax(dim=1).tolist() == [0] * 64


def test_a_budget_below_the_smallest_prefixes_is_refused_before_training() -> None:
    run = tiny.run(4)
    with pytest.raises(ValueError, match=r"keep_multiplications 0\.01 cannot be reached"):
        RNP(keep_multiplications=0.01, **SMALL).prune(tiny.network(), tiny.splits(), run)
    assert run.epochs_spent == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [({"p": -0.1}, "give p or keep_multiplications"), ({"alpha": 2.0}, "leave alpha out")],
)
def test_what_a_budget_makes_senseless_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RNP(keep_multiplications=0.5, **other)


def test_the_papers_penalty_is_the_default_where_there_is_no_budget() -> None:
    learned = learn(decision(), two_steps(), quick(steps=1), generator())
    assert learned.p == -0.1
    for method in (RNP(), RNP(keep_multiplications=0.5)):
        as_in_a_sweep_file = method.model_dump_json()
        assert RNP.model_validate_json(as_in_a_sweep_file, strict=True) == method


@pytest.mark.parametrize("seed", range(2))
def test_groups_that_only_pay_together_are_found(seed: int) -> None:
    """Each of three convs divides what is right by 4 when narrowed, the other three hardly at all.

    Where two of the three are narrow already, no single one is worth its price any more: a penalty
    that rises too fast never finds them again. One that does not rise buys all six.
    """

    class SixSteps(OneStep):
        dense = 6

    divides = torch.arange(6) % 2 == 1
    narrow = torch.where(divides, 0.25, 0.98)

    def widths(images: Tensor, actions: Tensor) -> Tensor:
        ones = torch.ones(len(images), 1)
        return torch.cat([ones, torch.cat([ones, actions.float()], dim=1).mean(dim=1)[:, None]], 1)

    problem = Problem(
        [widths] * 6, lambda _, actions: 1 - torch.where(actions == 1, 1.0, narrow).prod(dim=1)
    )
    network, budget = decision(features=[2] * 6), Budget(SixSteps(), 0.5)
    options = quick(
        keep_multiplications=0.5,
        learner="cost_to_go",
        steps=600,
        batch_size=16,
        q_learning_rate=3e-3,
    )
    network.favour_all()
    learned = learn(network, problem, options, generator(seed), budget=budget)

    def chosen() -> Tensor:
        return roll_out(network, problem.start(torch.arange(1)), 0.0, generator()).actions[0]

    assert torch.equal(chosen() == 1, divides), "the learning itself comes to the budget"
    budget.settle(network, greedily(network, problem), -learned.p, torch.ones(6))
    assert torch.equal(chosen() == 1, divides)
