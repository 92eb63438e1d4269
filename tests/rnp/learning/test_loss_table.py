"""The table of losses against masked passes of every combination, one after the other."""

import itertools
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from two_decisions import Adds, three_convs

from rnp.learning.environment import BackboneEnvironment
from rnp.learning.loss_table import LossTable, n_combinations, passes_per_image
from rnp.runtime_network import RuntimeNetwork
from testbed.augmentation import Augmentation
from testbed.cost import count_multiplications
from testbed.data import Splits, normalise

CPU = torch.device("cpu")
GROUPS = 3


def splits() -> Splits:
    return replace(tiny.splits(n_train=12), augmentation=Augmentation(crop=0, flip=False))


def runtime(kind: str) -> RuntimeNetwork:
    backbone = three_convs() if kind == "conv" else Adds()
    return RuntimeNetwork(backbone, GROUPS).eval()


def environment_of(network: RuntimeNetwork, data: Splits, seed: int = 0) -> BackboneEnvironment:
    generator = torch.Generator().manual_seed(seed)
    return BackboneEnvironment(network, data, generator, CPU, "float32")


@torch.no_grad()
def table_of(network: RuntimeNetwork, data: Splits) -> LossTable:
    return LossTable(environment_of(network, data))


@torch.no_grad()
def brute_force(
    network: RuntimeNetwork, data: Splits, combination: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """The pooled inputs of each pruned conv, and each image's loss, of a whole masked pass."""
    images = normalise(data.train.pixels, data.mean, data.std)
    pooled: list[Tensor] = []
    hooks = [
        network.get_submodule(conv.name).register_forward_pre_hook(
            lambda _, args: pooled.append(args[0].mean(dim=(2, 3)))
        )
        for conv in network.flow.convs
    ]
    logits = network.masked(images, torch.tensor([combination] * len(images)))
    for hook in hooks:
        hook.remove()
    return pooled, F.cross_entropy(logits, data.train.labels, reduction="none")


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_the_table_is_what_every_combination_gives(kind: str) -> None:
    network, data = runtime(kind), splits()
    table = table_of(network, data)
    n_steps = len(network.flow.convs)
    assert n_steps == 2
    assert table.losses.shape == (12, GROUPS**n_steps)
    for column, combination in enumerate(itertools.product(range(GROUPS), repeat=n_steps)):
        pooled, losses = brute_force(network, data, combination)
        torch.testing.assert_close(table.losses[:, column], losses)
        torch.testing.assert_close(table.features[0][:, 0], pooled[0])
        torch.testing.assert_close(table.features[1][:, combination[0]], pooled[1])


@pytest.mark.parametrize("kind", ["conv", "residual"])
@torch.no_grad()
def test_its_episodes_are_those_of_the_backbone(kind: str) -> None:
    network, data = runtime(kind), splits()
    images = torch.tensor([3, 11, 0, 3, 7])
    backbone = environment_of(network, data)
    episodes, looked_up = backbone.start(images), table_of(network, data).start(images)
    generator = torch.Generator().manual_seed(5)
    while (features := episodes.observe()) is not None:
        seen = looked_up.observe()
        assert seen is not None
        torch.testing.assert_close(seen, features)
        actions = torch.randint(GROUPS, (5,), generator=generator)
        episodes.act(actions)
        looked_up.act(actions)
    assert looked_up.observe() is None
    torch.testing.assert_close(looked_up.losses, episodes.losses)


def test_its_forks_go_on_by_themselves() -> None:
    network, data = runtime("conv"), splits()
    table = table_of(network, data)
    episodes = table.start(torch.tensor([4, 5]))
    episodes.act(torch.tensor([1, 2]))
    forked = episodes.fork()
    episodes.act(torch.tensor([0, 0]))
    forked.act(torch.tensor([2, 1]))
    assert episodes.losses.tolist() == [table.losses[4, 3], table.losses[5, 6]]
    assert forked.losses.tolist() == [table.losses[4, 5], table.losses[5, 7]]


def test_the_table_has_an_augmented_draw_of_every_training_image() -> None:
    network = runtime("conv")
    data = replace(splits(), augmentation=Augmentation(crop=2, flip=True))
    one, other = (LossTable(environment_of(network, data, seed)).losses for seed in (0, 1))
    assert one.shape == other.shape == (12, 9)
    assert not torch.equal(one, other)


def test_its_cost_is_every_layer_as_often_as_it_has_different_inputs() -> None:
    network, data = runtime("conv"), splits()
    layers = count_multiplications(three_convs(), torch.zeros(1, 2, 8, 8)).per_layer
    by_layer = {name: int(count) for name, count in layers.items()}
    # What an action masks is first read by the next layer.
    times = {"conv1": 1, "conv2": 1, "conv3": 3, "hidden": 9, "classifier": 9}
    assert by_layer.keys() == times.keys()
    table = sum(times[name] * count for name, count in by_layer.items())
    assert passes_per_image(network, data) == pytest.approx(table / sum(by_layer.values()))
    assert table_of(network, data).backbone_images == pytest.approx(
        12 * table / sum(by_layer.values())
    )


@pytest.mark.parametrize(("n_convs", "groups", "n"), [(2, 4, 4), (4, 4, 64), (4, 2, 8)])
def test_there_are_k_to_the_number_of_pruned_convs_combinations(
    n_convs: int, groups: int, n: int
) -> None:
    convs = [nn.Conv2d(2 if i == 0 else 8, 8, 3, padding=1) for i in range(n_convs)]
    network = nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 64, 3))
    assert n_combinations(RuntimeNetwork(network, groups).decision) == n
