"""A network of groups computes a group for those images alone that go on to it."""

import copy
from typing import Any

import pytest
import tiny
import torch
from small_groups import SHARES, decide, grouped, images
from torch import Tensor, nn

from rnp.grouped_network import GO_ON, STOP, GroupedNetwork
from rnp.structure.thin_network import thin_network
from testbed.cost import count_multiplications, multiplications_by_layer
from testbed.inference_form import inference_form
from testbed.looks import average

KINDS = ["conv", "residual"]


def stops_after(network: GroupedNetwork, image: Tensor) -> int:
    """Groups that are computed for an image (1, C, H, W)."""
    for step in range(network.n_groups - 1):
        if decide(network, step, image).argmax() == STOP:
            return step + 1
    return network.n_groups


def always(network: GroupedNetwork, action: int) -> GroupedNetwork:
    fixed = copy.deepcopy(network)
    fixed.decision.offsets[:, action] += 1e6
    return fixed


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_compacted_is_what_runs_masked(kind: str) -> None:
    network = grouped(kind)
    x = images()
    with torch.no_grad():
        compacted, masked = network(x), network.masked(x)
        alone = torch.cat([network(image) for image in x.split(1)])
        last = network(x.contiguous(memory_format=torch.channels_last))
    numbers = {stops_after(network, image) for image in x.split(1)}
    assert numbers == {1, 2, 3}, "or the test shows nothing"
    for other in (masked, alone, last):
        torch.testing.assert_close(compacted, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compacted.exp().sum(dim=1), torch.ones(len(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_average_of_the_groups_that_were_computed(kind: str) -> None:
    network = grouped(kind)
    for image in images(12).split(1):
        with torch.no_grad():
            looked = [network.look(group, image)[1] for group in range(3)]
            answer = looked[0]
            for group in range(1, stops_after(network, image)):
                answer = average(answer, looked[group], network.weights[group])
            torch.testing.assert_close(network(image), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_that_of_the_computed_groups_and_the_decisions(kind: str) -> None:
    network, x = grouped(kind), images(12)
    groups = [
        multiplications_by_layer(thin_network(tiny.network(kind), s, x[:1]), x[:1]).total()
        for s in SHARES
    ]
    deciding = [network.decision.multiplications(step) for step in range(2)]
    counted = count_multiplications(network, x)
    assert counted.decides_per_image
    for image, cost in zip(x.split(1), counted.per_image.tolist(), strict=True):
        number = stops_after(network, image)
        assert cost == sum(groups[:number]) + sum(deciding[:number])


@pytest.mark.parametrize(("action", "groups"), [(STOP, 1), (GO_ON, 3)])
def test_one_action_for_all_computes_the_first_group_or_every_one(action: int, groups: int) -> None:
    network, x = always(grouped(), action), images(6)
    ran = count_multiplications(network, x).per_layer
    assert {name.split(".")[1] for name in ran if name.startswith("bodies")} == {
        str(group) for group in range(groups)
    }


def test_no_weight_leads_from_one_group_to_another() -> None:
    network, x = grouped(), images(6)
    first = always(network, STOP)(x)
    with torch.no_grad():
        for part in (network.bodies[1], network.classifiers[1], network.bodies[2]):
            for parameter in part.parameters():
                parameter.add_(1.0)
    assert torch.equal(always(network, STOP)(x), first)
    assert not torch.allclose(always(network, GO_ON)(x), first)


def test_images_in_another_order_have_their_answers_in_that_order() -> None:
    network, x = grouped(), images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(network(x[order]), network(x)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_that_runs_best_gives_the_same(kind: str) -> None:
    network, x = grouped(kind), images()
    with torch.no_grad():
        form: Any = inference_form(network, x[:1])
        assert form is not network
        torch.testing.assert_close(form(x), network(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(form(x[:1]), network(x[:1]), rtol=1e-3, atol=1e-4)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in form.bodies.modules()) == 0
