"""The network that comes back runs what its decisions ask for, and nothing more."""

import copy
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from runtime_networks import (
    NAMES,
    dense_of,
    own_decisions,
    runtime,
)
from torch import nn

import rnp.runtime_network
from rnp.execution.prepared import PreparedNetwork
from rnp.runtime_network import RuntimeNetwork
from testbed.cost import count_multiplications
from testbed.operations import counting_multiplications
from testbed.prediction import autocast

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("operators", "no_gradients")


def closed_form(network: RuntimeNetwork, actions: tuple[int, ...]) -> dict[str, int]:
    """Multiplications of one 16 x 16 image in `conv`, layer by layer, at these actions."""
    two, three, four = (
        conv.prefixes[action] for conv, action in zip(network.flow.convs, actions, strict=True)
    )
    decision = sum(6 * channels + 15 * (6 + 5) + 5 * 4 for channels in network.decision.inputs)
    return {
        "conv1": 256 * 9 * 2 * 6,
        "conv2": 256 * 9 * 6 * two,
        "conv3": 64 * 9 * two * three,
        "conv4": 64 * 9 * three * four,
        "hidden": 16 * four * 10,
        "classifier": 10 * 3,
        "decision": decision,
    }


def by_top_layer(counted: Counter[str]) -> dict[str, int]:
    result: Counter[str] = Counter()
    for name, count in counted.items():
        result[name.partition(".")[0]] += count
    return dict(+result)


def choose_always(network: RuntimeNetwork, actions: tuple[int, ...]) -> None:
    """The decision network does its work and is then overruled."""

    def overrule(module: nn.Module, args: Any, result: Any) -> Any:
        values, state = result
        return F.one_hot(torch.tensor([actions[args[0]]] * len(values)), 4).float(), state

    network.decision.register_forward_hook(overrule)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_runs_is_the_closed_form_for_every_combination_of_prefixes(precision: Any) -> None:
    network, shape = runtime("conv")
    for actions in product(range(4), repeat=3):
        other = copy.deepcopy(network)
        choose_always(other, actions)
        for n in (1, 3):
            with autocast(precision, CPU), counting_multiplications(other) as counted:
                other(torch.randn(n, *shape))
            expected = {k: n * v for k, v in closed_form(network, actions).items()}
            assert by_top_layer(counted) == expected


def test_each_image_costs_what_its_own_actions_cost_and_the_batch_their_sum() -> None:
    network, shape = runtime("conv")
    images = torch.randn(12, *shape)
    actions, _ = own_decisions(network, images)
    cost = count_multiplications(network, images, batch_size=5)
    expected = [sum(closed_form(network, tuple(each)).values()) for each in actions.tolist()]
    assert cost.per_image.tolist() == expected
    assert len(set(expected)) > 1
    with counting_multiplications(network) as together:
        network(images)
    assert together.total() == sum(expected)
    assert {"conv1", "conv2", "conv3", "conv4", "hidden"} <= cost.per_layer.keys()


def test_to_count_more_images_does_not_prepare_it_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[PreparedNetwork] = []

    class Counted(PreparedNetwork):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            prepared.append(self)

    monkeypatch.setattr(rnp.runtime_network, "PreparedNetwork", Counted)
    network, shape = runtime("conv")
    often = []
    for n in (4, 12):
        prepared.clear()
        count_multiplications(network, torch.randn(n, *shape))
        often.append(len(prepared))
    assert 0 < often[0] == often[1]


@pytest.mark.parametrize("name", NAMES)
def test_it_costs_less_than_the_dense_network_at_the_smallest_prefixes(name: str) -> None:
    dense, network = dense_of(name)
    _, shape = runtime(name)
    images = torch.randn(2, *shape)
    with counting_multiplications(dense) as all_of_it:
        dense(images)
    for action, at_most in ((0, 0.9), (network.flow.groups - 1, 1.0)):
        actions = torch.full((2, len(network.flow.convs)), action)
        with counting_multiplications(network) as counted:
            network.skipping(images, actions)
        assert counted.total() <= at_most * all_of_it.total()
    assert counted == all_of_it
