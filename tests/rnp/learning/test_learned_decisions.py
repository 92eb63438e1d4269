"""Q-learning of the decisions of tiny networks."""

from collections.abc import Mapping
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from rnp.learning.environment import BackboneEnvironment
from rnp.learning.options import QLearning
from rnp.learning.qlearning import Learned, learn_decisions
from rnp.prefix_cost import PrefixCost
from rnp.runtime_network import RuntimeNetwork
from testbed.backbones import build_backbone

CPU = torch.device("cpu")


def runtime(kind: str = "conv", **options: Any) -> RuntimeNetwork:
    return RuntimeNetwork(tiny.network(kind), **options)


def teach(network: RuntimeNetwork, seed: int = 0, **options: Any) -> Learned:
    options = {"steps": 30, "batch_size": 32, **options}
    run = tiny.run(seed=seed)
    return learn_decisions(network, tiny.splits(), QLearning(**options), run, phase=0)


def of_decision(network: RuntimeNetwork) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in network.state_dict().items() if "decision." in name}


@pytest.mark.parametrize("steps", [30, 2])
@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_only_the_decision_network_changes(kind: str, steps: int) -> None:
    network = runtime(kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    teach(network, steps=steps)
    for name, tensor in network.state_dict().items():
        if not name.startswith("decision."):
            assert torch.equal(tensor, before[name]), name
    for name in ("decision.encoders.0.weight", "decision.decoder.weight"):
        assert not torch.equal(network.state_dict()[name], before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("steps", [30, 2])
def test_the_same_seed_gives_the_same_weights_and_disturbs_no_one(steps: int) -> None:
    networks = [runtime(), runtime(), runtime()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        teach(network, seed, steps=steps)
    assert torch.equal(torch.rand(3), expected)
    one, same, other = map(of_decision, networks)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_modes_stay_as_they_were_and_nothing_is_dropped_meanwhile() -> None:
    network = runtime()
    network.train()
    network.get_submodule("conv1").eval()
    before = {name: module.training for name, module in network.named_modules()}
    during: set[bool] = set()
    dropout = next(module for module in network.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda module, *_: during.add(module.training))
    teach(network, steps=2)
    assert during == {False}
    assert {name: module.training for name, module in network.named_modules()} == before


def test_passes_through_the_backbone_are_counted() -> None:
    live = teach(runtime(), steps=2)
    assert live.backbone_images == 96 + 2 * 32  # all examples, then two batches
    tabulated = teach(runtime(), steps=30)
    assert 96 < tabulated.backbone_images < 4 * 96


def test_backbone_episodes_end_in_each_images_own_loss() -> None:
    network, data = runtime().eval(), tiny.splits()
    environment = BackboneEnvironment(network, data, torch.Generator(), CPU, "float32")
    images = torch.tensor([4, 0, 7])
    episodes = environment.start(images)
    inputs = episodes.run.images
    while episodes.observe() is not None:
        episodes.act(torch.tensor([0, 3, 1]))
    for image, action in enumerate((0, 3, 1)):
        with torch.no_grad():
            logits = network.masked(inputs[image : image + 1], torch.tensor([[action]]))
        label = data.train.labels[images[image : image + 1]]
        torch.testing.assert_close(episodes.losses[image], F.cross_entropy(logits, label))


def test_backbone_episodes_are_augmented_anew_each_time() -> None:
    network = runtime().eval()
    environment = BackboneEnvironment(network, tiny.splits(), torch.Generator(), CPU, "float32")
    first, second = (environment.start(torch.arange(20)).observe() for _ in range(2))
    assert first is not None and second is not None
    assert not torch.equal(first, second)


@pytest.mark.parametrize("learner", ["td", "cost_to_go"])
def test_what_is_learnt_is_worth_more_than_random_actions(learner: str) -> None:
    reports: list[Mapping[str, float]] = []
    options = QLearning(steps=200, batch_size=64, p=-0.2, learner=learner)
    learn_decisions(runtime(), tiny.splits(), options, tiny.run(reports=reports), phase=0)
    assert reports[-1]["mean_return"] > reports[1]["mean_return"] + 0.1


def test_the_cost_to_go_of_many_combinations_is_played_live(monkeypatch: Any) -> None:
    """Every action of both decisions is played to its end, and so counted."""
    monkeypatch.setattr("rnp.learning.qlearning.MOST_COMBINATIONS", 15)
    convs = [nn.Conv2d(2 if i == 0 else 4, 4, 3, padding=1) for i in range(3)]
    backbone = nn.Sequential(*convs, nn.Flatten(), nn.Linear(4 * 64, 3))
    network, data = RuntimeNetwork(backbone, groups=4), tiny.splits()
    first, second, third, linear = 9 * 2 * 4 * 64, *2 * [9 * 4 * 4 * 64], 4 * 64 * 3
    everything = first + second + third + linear
    options = QLearning(learner="cost_to_go", steps=2, batch_size=32)
    learned = learn_decisions(network, data, options, tiny.run(), phase=0)
    # What an action leaves out is first read by the next layer; that is where the episodes fork.
    after_second, after_third = third + linear, linear
    a_batch = 32 * (2 * everything - linear + 4 * after_second + 4 * after_third)
    examples = 96 * everything
    assert learned.backbone_images == pytest.approx((examples + 2 * a_batch) / everything)


def test_a_group_s_price_is_what_it_adds_to_the_cost() -> None:
    channels = (4, 6, 8)
    backbone = build_backbone("conv", (2, 8, 8), 3, channels=channels, hidden=10)
    got = PrefixCost.of_runtime(RuntimeNetwork(backbone), tiny.splits()).prices()
    conv2, conv3 = 9 * 4 * 6 * 64, 9 * 6 * 8 * 64
    added = torch.tensor([conv2 + conv3, conv3 + 8 * 16 * 10], dtype=torch.float32)
    torch.testing.assert_close(got, added / added.mean())
