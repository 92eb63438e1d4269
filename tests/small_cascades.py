"""Small cascades whose looks are seldom of one mind."""

from collections.abc import Iterator

import torch
from small_networks import lived_in
from torch import Tensor, nn

from baselines.runtime.cascade_network import CascadeNetwork
from testbed.backbones import build_backbone

CONFIDENCES = ["margin", "max_softmax", "drawn"]


def images(n: int = 40) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def networks() -> Iterator[nn.Module]:
    """Three of different widths that are seldom of one mind."""
    for number, channels in enumerate(((2, 3), (4, 5), (6, 8))):
        torch.manual_seed(number)
        network = lived_in(build_backbone("conv", (2, 8, 8), 3, channels=channels, hidden=10))
        with torch.no_grad():
            logits = network.eval()(images())
            network.classifier.bias.sub_(logits.mean(dim=0))
            for parameter in network.classifier.parameters():
                parameter.mul_(1.5 / logits.std(dim=0).mean())
        yield network


def cascade(confidence: str = "margin", mirror: bool = True) -> CascadeNetwork:
    """Of which about half of the images that come to a look come to the next."""
    network = CascadeNetwork([*networks()], confidence, mirror).eval()  # type: ignore[arg-type]
    network.thresholds.copy_(torch.tensor([0.6, 0.35, 0.2])[: network.looks - 1])
    if confidence == "max_softmax":
        network.thresholds.add_(0.3)
    network.weights.copy_(torch.tensor([1.0, 0.6, 0.7, 0.5])[: network.looks])
    network.seed.fill_(3)
    return network
