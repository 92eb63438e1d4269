"""Networks that RNP makes two decisions about, for tests that compare with forwards by hand."""

import torch
from torch import Tensor, nn

from testbed.backbones import build_backbone


def three_convs() -> nn.Module:
    """Two decisions, batch norm with figures of its own, a linear layer behind the last conv."""
    torch.manual_seed(0)
    network = build_backbone("conv", (2, 8, 8), 3, channels=(4, 6, 7), pool_after=(1, 3), hidden=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight, module.bias):
                assert values is not None
                nn.init.normal_(values)
    return network.eval()


class Adds(nn.Module):
    """Convs between which everything happens in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ELU(inplace=True)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        outer = self.stem(images)
        outer += self.conv2(self.act(self.conv1(outer)))
        outer = self.act(outer)
        outer.add_(self.conv4(self.act(self.conv3(outer))))
        logits: Tensor = self.classifier(self.act(outer).mean(dim=(2, 3)))
        return logits
