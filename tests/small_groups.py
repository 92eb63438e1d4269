"""A small network of three groups, whose decisions differ from image to image."""

import tiny
import torch
from torch import Tensor

from rnp.grouped_network import GroupedNetwork, observed
from rnp.structure.thin_network import thin_network
from testbed.looks import average
from testbed.new_weights import draw_anew

SHARES = (0.3, 0.5, 0.8)


def images(n: int = 40) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def grouped(kind: str = "conv") -> GroupedNetwork:
    """Three groups, with decisions that differ from image to image and weights of all kinds."""
    black = torch.zeros(1, 2, 8, 8)
    network = GroupedNetwork([thin_network(tiny.network(kind), s, black) for s in SHARES])
    draw_anew(network, 1)
    network.train()(images())  # statistics of its own
    network.eval()
    network.weights.copy_(torch.tensor([1.0, 0.6, 0.3]))
    shown = seen(network, images())
    with torch.no_grad():
        network.decision.decoder.weight.mul_(8)
        for step, features in enumerate(shown):
            network.decision.standardise(step, features)
            values = torch.stack([decide(network, step, x) for x in images().split(1)])
            gap = (values[:, 1] - values[:, 0]).quantile(0.5)  # between two images
            network.decision.offsets[step, 1] -= gap
    return network


def seen(network: GroupedNetwork, x: Tensor) -> list[Tensor]:
    """What is decided from at each step, were all to go on."""
    with torch.no_grad():
        features, answers = network.look(0, x)
        found = [observed(features, answers)]
        for group in range(1, network.n_groups - 1):
            features, looked = network.look(group, x)
            answers = average(answers, looked, network.weights[group])
            found.append(observed(features, answers))
    return found


def decide(network: GroupedNetwork, step: int, image: Tensor) -> Tensor:
    """Q-values (2,) of an image at a step."""
    state = None
    with torch.no_grad():
        for number, features in enumerate(seen(network, image)[: step + 1]):
            values, state = network.decision(number, features, state)
    return values[0]
