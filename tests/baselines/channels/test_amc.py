"""AMC: a hard budget, an agent that learns, and what comes of it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from small_networks import lived_in
from torch import nn

from baselines import AMC
from baselines.channels.amc import POSITIONS, Candidates, Search, Space
from baselines.channels.channel_removal import example_images
from baselines.channels.contributions import Sampler
from baselines.channels.ddpg import Agent
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.held_back import divided

CPU = torch.device("cpu")
QUICK = {"episodes": 6, "warm_up": 3}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return lived_in(build_backbone("resnet20", (2, 8, 8), 3, width=0.5)).eval()


def space_of(model: nn.Module, **options: object) -> Space:
    method = AMC(**options)  # type: ignore[arg-type]
    amount = method.amount(model, example_images(tiny.splits(), CPU))
    share = method.keep_multiplications
    return Space(model, amount, share, method.lower_bound, method.round_to)


@pytest.mark.parametrize("scope", ["inside_blocks", "all"])
@pytest.mark.parametrize(
    "amount", [{"keep_multiplications": 0.4}, {"keep_multiplications": 0.6}, {"keep_ratio": 0.5}]
)
@pytest.mark.parametrize("round_to", [1, 4])
def test_no_action_exceeds_the_budget(scope: str, amount: dict[str, float], round_to: int) -> None:
    space = space_of(resnet(), scope=scope, round_to=round_to, **amount)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for episode in range(60):
        counts: dict[str, int] = {}
        for name in space.channels:
            action = torch.rand((), generator=generator).item() if episode else 1.0
            counts[name] = space.removed(name, action, counts)
        shares.append(space.share(counts))
        for name, gone in counts.items():
            channels, kept = space.channels[name], space.channels[name] - gone
            assert kept >= 1
            assert kept % round_to == 0 or kept == channels or channels < round_to
    assert max(shares) <= space.budget
    assert shares[0] > 0.9 * space.budget or round_to > 1, "all that the wall allows"


def test_a_share_below_what_the_lower_bound_leaves_is_met_too() -> None:
    space = space_of(resnet(), scope="all", keep_multiplications=0.05, lower_bound=0.9)
    counts: dict[str, int] = {}
    for name in space.channels:
        counts[name] = space.removed(name, 1.0, counts)
    assert space.share(counts) <= 0.05


def test_the_share_is_that_of_the_multiplications_that_run() -> None:
    model, data = tiny.trained(), tiny.splits()
    pruned = AMC(keep_multiplications=0.5, **QUICK).prune(model, data, tiny.run(0))
    x = data.normalised(data.validation)[:1]
    dense, left = (count_multiplications(each, x).multiplications for each in (model, pruned))
    assert left / dense <= 0.5


def two_layers() -> Space:
    model = build_backbone("conv", (2, 8, 8), 3, channels=(10, 10), hidden=10)
    return space_of(model, keep_multiplications=0.5)


def table(counts: Mapping[str, int]) -> float:
    """Best where the first layer keeps 9 of its channels and the second what is left."""
    first, second = counts.values()
    return 1 - 0.1 * abs(first - 1) - 0.02 * second


def test_the_best_of_a_table_of_rewards_is_found() -> None:
    space = two_layers()
    search = Search(space, warm_up=20, seed=0)
    for _ in range(80):
        search.episode(table)
    choices = []
    for first in range(space.most["conv1"] + 1):
        low = space.removed("conv1", 1 - first / 10, {})
        choices.append({"conv1": low, "conv2": space.removed("conv2", 1.0, {"conv1": low})})
    best = max(choices, key=table)
    assert search.best == best and search.best_reward == table(best)


def test_the_agent_goes_to_the_action_that_is_rewarded() -> None:
    agent, state = Agent(3, 1, warm_up=30, seed=0), torch.tensor([0.0, 0.5, 1.0])
    actions = []
    for _ in range(160):
        actions.append(agent.act(state))
        agent.learn([state], actions[-1:], 1 - abs(actions[-1] - 0.8))
    late = torch.tensor(actions[-10:])
    assert (late - 0.8).abs().mean() < 0.1
    assert min(actions) >= 0 and max(actions) <= 1


def test_the_search_begins_with_the_uniform_choice_and_asks_once_for_each_choice() -> None:
    asked: list[dict[str, int]] = []

    def reward(counts: Mapping[str, int]) -> float:
        asked.append(dict(counts))
        return 0.5

    space = two_layers()
    search = Search(space, warm_up=5, seed=0)
    for _ in range(30):
        search.episode(reward)
    assert asked[0] == space.uniform == search.best
    keys = [tuple(each.values()) for each in asked]
    assert len(set(keys)) == len(keys) == len(search.rewards) < 30


def test_what_was_rewarded_before_a_stop_is_not_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run(1)
    run.folder = tmp_path
    whole = AMC(**QUICK).prune(tiny.trained(), tiny.splits(), run)
    monkeypatch.setattr(Candidates, "accuracy", None)
    again = tiny.run(1)
    again.folder = tmp_path
    found = AMC(**QUICK).prune(tiny.trained(), tiny.splits(), again)
    assert again.reported == run.reported
    assert torch.equal(found.conv2.weight, whole.conv2.weight)


def test_every_image_that_gave_a_reward_is_reported() -> None:
    reports: list = []
    data = tiny.splits()
    AMC(images=48, **QUICK).prune(tiny.trained(), data, tiny.run(0, reports=reports))
    assert reports[0] == {"statistics_epochs": 0.5}
    (searched,) = [r for r in reports if "reward_epochs" in r]
    networks = searched["reward_epochs"] * len(data.train) / (len(data.validation) / 2)
    assert 1 <= networks <= 6 and networks == int(networks)


def test_the_inputs_of_least_weight_go_and_the_reader_is_refitted() -> None:
    model, data = tiny.trained(), tiny.splits()
    method = AMC(keep_ratio=0.5)
    example = example_images(data, CPU)
    amount = method.amount(model, example)
    run = tiny.run(0)
    sampler = Sampler.of_run(model, data, run, method.images, POSITIONS)
    candidates = Candidates(model, example, amount, sampler, run)
    smaller = candidates.network(amount.removed)
    kept = model.conv2.weight.abs().sum(dim=(0, 2, 3)).topk(3).indices.sort().values
    assert torch.equal(smaller.get_parameter("conv1.weight"), model.conv1.weight[kept])
    assert smaller.get_parameter("conv2.weight").shape == (4, 3, 3, 3)
    values = smaller.get_parameter("conv2.weight")[0]
    assert not any(torch.allclose(values, row[kept], atol=1e-3) for row in model.conv2.weight)


def test_it_is_judged_on_images_that_gave_no_reward() -> None:
    data = tiny.splits()
    rewarding, judged = divided(data, 0.5, "reward_share")
    held = AMC().held_back(data).validation
    assert torch.equal(held.pixels, judged.validation.pixels)
    assert len(held) + len(rewarding) == len(data.validation)


def test_a_search_that_never_learns_is_refused() -> None:
    with pytest.raises(ValidationError, match="the agent would learn nothing"):
        AMC(episodes=50, warm_up=50)
