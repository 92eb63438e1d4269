"""A network of networks: who looks at an image, what it costs, what comes of it."""

import copy

import pytest
import tiny
import torch
from small_cascades import CONFIDENCES, cascade, images
from torch import Tensor, nn

from baselines.runtime.cascade_network import CascadeNetwork
from baselines.runtime.image_hash import uniform_of_images
from testbed.cost import count_multiplications, multiplications_by_layer
from testbed.inference_form import inference_form
from testbed.latency import measure_latency
from testbed.looks import average, confidence_of


def played(network: CascadeNetwork, image: Tensor) -> tuple[Tensor, int]:
    """Log-probabilities (classes,) of one image, and how many looks it got, as one reads it."""
    answer = torch.empty(0)
    for number in range(network.looks):
        turned = image.flip(-1) if number == len(network.networks) else image
        own = network.networks[min(number, len(network.networks) - 1)](turned[None])[0]
        own = own.softmax(0).log()
        share = network.weights[number]
        mixed = own if number == 0 else (1 - share) * answer + share * own
        answer = (mixed.exp() / mixed.exp().sum()).log()
        if number + 1 == network.looks:
            break
        first, second, _ = answer.exp().sort(descending=True).values
        sure = {"margin": first - second, "max_softmax": first}.get(network.confidence)
        if sure is None:
            sure = uniform_of_images(image[None], network.seed)[0]
        if sure >= network.thresholds[number]:
            break
    return answer, number + 1


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_an_image_is_looked_at_until_the_answer_is_sure(confidence: str, mirror: bool) -> None:
    network = cascade(confidence, mirror)
    with torch.no_grad():
        expected = [played(network, image) for image in images()]
        found = network(images())
        alone = torch.cat([network(image[None]) for image in images()])
        masked = network.masked(images())
    looks = [looks for _, looks in expected]
    assert set(looks) == set(range(1, network.looks + 1)), "else the test says little"
    answers = torch.stack([answer for answer, _ in expected])
    for each in (found, alone, masked):
        torch.testing.assert_close(each, answers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_an_image_costs_what_the_networks_cost_that_look_at_it(confidence: str) -> None:
    network = cascade(confidence)
    costs = [multiplications_by_layer(each, images(1)).total() for each in network.networks]
    costs.append(costs[-1])
    with torch.no_grad():
        expected = [sum(costs[: played(network, image)[1]]) for image in images()]
    cost = count_multiplications(network, images())
    assert cost.per_image.tolist() == expected
    assert cost.decides_per_image


class Refuses(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("nobody should look")


@pytest.mark.parametrize("n", [1, 7])
def test_networks_that_no_image_needs_do_not_run(n: int) -> None:
    network = cascade()
    network.thresholds[1] = -torch.inf
    with torch.no_grad():
        expected = network(images(n))
        network.networks[2] = Refuses()
        assert torch.equal(network(images(n)), expected)


def test_no_images_give_no_answers() -> None:
    with torch.no_grad():
        assert cascade()(images(0)).shape == (0, 3)


def test_layouts_of_memory_make_no_difference() -> None:
    for confidence in CONFIDENCES:
        network = cascade(confidence)
        with torch.no_grad():
            expected = network(images())
            found = network(images().contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_inference_form_decides_and_answers_alike() -> None:
    network = cascade()
    form = inference_form(network, images(1))
    assert form is not network
    with torch.no_grad():
        torch.testing.assert_close(form(images()), network(images()), rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(network.state_dict())
    measure_latency({"": network}, images(), (1, 8), seconds=0.01)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_gradients_reach_every_network_in_training_mode() -> None:
    network = cascade().train()
    network.thresholds.fill_(torch.inf)
    network(images())[:, 0].sum().backward()
    for each in network.networks:
        assert all((p.grad != 0).any() for p in each.classifier.parameters())


def test_confidences_are_those_of_the_probabilities() -> None:
    answers = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()
    assert confidence_of(answers, "margin").tolist() == pytest.approx([0.2, 0.7])
    assert confidence_of(answers, "max_softmax").tolist() == pytest.approx([0.5, 0.8])


def test_an_average_is_the_normalised_geometric_mean() -> None:
    first, second = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.1, 0.1, 0.8])
    mean = first**0.75 * second**0.25
    found = average(first.log(), second.log(), 0.25)
    torch.testing.assert_close(found.exp(), mean / mean.sum())


def test_an_images_draw_depends_on_its_pixels_and_the_seed_alone() -> None:
    many = tiny.splits().train.pixels.float() / 255
    drawn = uniform_of_images(many, 1)
    assert torch.equal(torch.cat([uniform_of_images(image[None], 1) for image in many]), drawn)
    last = many.contiguous(memory_format=torch.channels_last)
    assert torch.equal(uniform_of_images(last, 1), drawn)
    changed = many.clone()
    changed[:, 1, 3, 4] += 1 / 255
    for other in (uniform_of_images(changed, 1), uniform_of_images(many, 2), drawn.roll(1)):
        assert abs(torch.corrcoef(torch.stack([drawn, other]))[0, 1]) < 0.35
        assert (other != drawn).float().mean() > 0.99


def test_draws_are_even() -> None:
    generator = torch.Generator().manual_seed(0)
    # Of images that differ in a single pixel of few values, as the hardest.
    pixels = torch.zeros(20_000, 1, 3, 3)
    pixels.view(20_000, 9)[:, 4] = torch.arange(20_000) / 255
    for many in (pixels, torch.rand(20_000, 1, 3, 3, generator=generator)):
        drawn = uniform_of_images(many, 0)
        assert drawn.min() >= 0 and drawn.max() < 1
        shares = torch.histc(drawn, 20, 0, 1) / 20_000
        assert (shares - 0.05).abs().max() < 4 * (0.05 * 0.95 / 20_000) ** 0.5
