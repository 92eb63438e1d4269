"""Q-learning of where to stop, on problems worked by hand."""

from itertools import product

import pytest
import torch
from markov_problem import quick
from torch import Tensor

from rnp.execution.decision import DecisionNetwork
from rnp.learning.budget import Budget
from rnp.learning.stopping import Looks, actions_of, learn_to_stop, returns

N = 64


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def decision(steps: int) -> DecisionNetwork:
    torch.manual_seed(0)
    return DecisionNetwork([1] * steps, 2, encoding=16, hidden=24)


def test_returns_are_what_following_the_actions_brings() -> None:
    losses = torch.rand(8, 4, generator=generator())
    penalties, alpha = torch.tensor([-0.1, -0.3, -0.2]), 2.0
    actions = torch.tensor(list(product((0, 1), repeat=3)))
    found = returns(actions, losses, penalties, alpha)

    def by_hand(image: int, step: int) -> float:
        """What the image gets from `step` on."""
        if step == 3 or actions[image, step] == 0:
            return -alpha * losses[image, step].item()
        return penalties[step].item() + by_hand(image, step + 1)

    for image, step in product(range(8), range(3)):
        stopped, going = found[image, step].tolist()
        assert stopped == pytest.approx(-alpha * losses[image, step].item())
        assert going == pytest.approx(penalties[step].item() + by_hand(image, step + 1))


def images_of_many_worths() -> Looks:
    """Image i shows i; another look takes i / N from its loss of 1, the look after that nothing."""
    shown = torch.arange(N)[:, None].float()
    after = 1 - shown[:, 0] / N
    return Looks([shown, shown], torch.stack([torch.ones(N), after, after], dim=1))


def test_images_go_on_where_it_is_worth_more_than_its_price() -> None:
    looks, network = images_of_many_worths(), decision(2)
    options = quick(p=-0.4, alpha=1.0, steps=600)
    learn_to_stop(network, looks, options, generator())
    first, second = actions_of(network, looks.features).unbind(dim=1)
    assert first.float().mean().item() == pytest.approx(0.6, abs=0.05)
    assert torch.equal(first, first.sort().values), "those that it is worth most to"
    assert second.sum() == 0, "a look that takes nothing from the loss is not worth a penalty"


@pytest.mark.parametrize(("p", "going"), [(0.0, N), (-1e6, 0)])
def test_all_go_on_where_it_is_free_and_none_where_it_costs_everything(
    p: float, going: int
) -> None:
    shown = torch.arange(N)[:, None].float()
    looks = Looks([shown], torch.tensor([[1.0, 0.5]]).expand(N, -1))
    network = decision(1)
    learn_to_stop(network, looks, quick(p=p, steps=300), generator())
    assert actions_of(network, looks.features).sum() == going


class Halves:
    """The first look costs half of everything, the others a quarter each."""

    dense = 1

    def of_images(self, actions: Tensor) -> Tensor:
        return 0.5 + 0.25 * actions.cumprod(dim=1).double().sum(dim=1)


@pytest.mark.parametrize("share", [0.6, 0.7])
def test_a_budget_is_spent_on_those_that_it_is_worth_most_to(share: float) -> None:
    looks, network = images_of_many_worths(), decision(2)
    budget = Budget(Halves(), share)
    options = quick(keep_multiplications=share, steps=800)
    learned = learn_to_stop(network, looks, options, generator(), budget=budget)
    penalty = budget.settle(
        network, lambda: actions_of(network, looks.features), -learned.p, torch.ones(2)
    )
    actions = actions_of(network, looks.features)
    spent = Halves().of_images(actions).mean().item()
    assert share - 0.02 <= spent <= share + 1e-9
    assert torch.equal(actions[:, 0], actions[:, 0].sort().values)
    assert penalty / learned.alpha == pytest.approx(1 - 4 * (share - 0.5), abs=0.1)


def test_the_same_generator_gives_the_same_network_and_alpha_is_reported() -> None:
    networks, reports = [], []
    for _ in range(2):
        networks.append(decision(2))
        looks = images_of_many_worths()
        learned = learn_to_stop(networks[-1], looks, quick(steps=20), generator(), reports.append)
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert reports[0] == {"alpha": learned.alpha}
    assert learned.alpha == pytest.approx(1 / looks.losses.mean().item())
    assert {"q_step", "q_loss", "mean_return", "p"} <= reports[1].keys()


def test_losses_that_say_nothing_are_refused() -> None:
    looks = Looks([torch.zeros(4, 1)], torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"that loss is 0\. Give alpha itself"):
        learn_to_stop(decision(1), looks, quick(steps=1), generator())
