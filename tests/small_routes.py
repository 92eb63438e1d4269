"""Small networks that decide about residual blocks, differently from image to image."""

import tiny
import torch
from torch import Tensor, nn
from two_decisions import Adds

from rnp.routed_network import RoutedNetwork
from testbed.backbones import build_backbone

SMALL = {"encoding": 4, "hidden": 4}


class TwoBlocks(nn.Module):
    """A stem, two blocks with sums around them, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        outer = self.stem(images).relu()
        outer = outer + self.conv2(self.conv1(outer).relu())  # the next block reads it as it is
        outer = (outer + self.conv3(outer)).relu()
        logits: Tensor = self.classifier(outer.mean(dim=(2, 3)))
        return logits


def model(kind: str) -> nn.Module:
    torch.manual_seed(5)
    if kind == "resnet20":
        found: nn.Module = build_backbone("resnet20", (2, 8, 8), 3, width=0.25)
    else:
        made = {"in place": Adds, "two blocks": TwoBlocks}
        found = made[kind]() if kind in made else tiny.network("residual")
    found.train()(images(16))  # statistics of its own
    return found.eval()


def images(n: int = 9) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def deciding(kind: str) -> RoutedNetwork:
    """With decisions that differ from image to image."""
    network = RoutedNetwork(model(kind), **SMALL).eval()
    with torch.no_grad():
        network.decision.decoder.weight.mul_(20)
        run = network.started(images(64))
        state, step = None, 0
        while (seen := run.observe()) is not None:
            network.decision.standardise(step, seen)
            values, state = network.decision(step, seen, state)
            network.decision.offsets[step, 1] -= (values[:, 1] - values[:, 0]).quantile(0.5)
            run.act((network.decision(step, seen)[0]).argmax(dim=1))
            step += 1
    return network
