"""Makes a backbone work on prefixes of its channels, before anything decides which.

Every image of a training batch runs with prefixes drawn at random, so that one set of weights
serves all of them (slimmable networks: Yu et al. 2019, arXiv 1812.08928). RNP and its control,
`static_prefix`, start from the same adapted backbone.
"""

import copy
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import channel_flow
from rnp.structure.channel_order import order_channels
from testbed.data import Splits
from testbed.method import OwnTeacher, Run

Prefixes = Literal["sandwich", "widths"]

AT_AN_END = 0.25  # share of the images at full width, and in a sandwich as many at the least
DEPARTURE = 1 / 3  # of a conv from the image's width: the deviation, of the way from least to full


class Adaptation(BaseModel):
    """What RNP and `static_prefix` have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    k: int = Field(default=4, ge=2, le=16)
    """Channel groups of every conv, as in the paper."""
    adaptation: float = Field(default=0.25, ge=0, le=1)
    """Share of the fine-tuning epochs that goes to random prefixes."""
    order_channels: bool = True
    """Group channels by importance, so that small prefixes hold most."""
    prefixes: Prefixes = "sandwich"
    """What images adapt to. sandwich: a quarter full width, a quarter the least, which all prefixes
    lie between (Yu and Huang 2019), else each conv at random. widths: a quarter full, else a width
    of the image's own, rather wide than narrow, which its convs depart from at random; for a dozen
    convs, as of independent draws one is nearly always too narrow for anything to be learnt."""
    distillation: float = Field(default=0.0, ge=0, le=1)
    """Share of the loss that compares with the outputs of the full width, as the dense network was
    trained; the labels' is the rest. In all of the fine-tuning."""

    def teacher(self, dense: nn.Module) -> OwnTeacher | None:
        """What the fine-tuning distils from."""
        if self.distillation == 0:
            return None
        return OwnTeacher(copy.deepcopy(dense), self.distillation)  # as it goes to the device


def adapted(
    model: nn.Module,
    data: Splits,
    run: Run,
    options: Adaptation,
    encoding: int = 64,
    hidden: int = 128,
) -> RuntimeNetwork:
    """A copy of `model` that works on any prefixes, with a decision network still to be taught.

    Spends `options.adaptation` of the fine-tuning epochs, rounded.

    Args:
        encoding, hidden: sizes of the decision network, which change nothing of the backbone.

    Raises:
        ValueError: if no conv of `model` can be pruned at run time.
    """
    teacher = options.teacher(model)
    model = copy.deepcopy(model).to(run.device)
    if options.order_channels:
        order_channels(model, channel_flow(model, options.k))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        network = RuntimeNetwork(model, options.k, encoding, hidden).to(run.device)
    epochs = round(options.adaptation * run.fine_tuning.epochs)
    prefixes = RandomPrefixes(network, options.prefixes)
    run.fine_tune(prefixes, data, epochs, teacher, judged=False)  # at full width they cost all
    return network


class RandomPrefixes(nn.Module):
    """Draws the prefixes of each image while training; keeps all channels in evaluation mode."""

    def __init__(self, network: RuntimeNetwork, prefixes: Prefixes) -> None:
        super().__init__()
        self.network = network
        self.prefixes = prefixes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        n, device, largest = len(images), images.device, self.network.flow.groups - 1
        full = torch.full((n, len(self.network.flow.convs)), largest, device=device)
        if not self.training:
            return self.network.masked(images, full)
        if self.prefixes == "sandwich":
            actions = torch.randint_like(full, largest + 1)
        else:
            # The root makes wide networks the likelier ones: what narrow ones learn disturbs most.
            width = largest * torch.rand(n, 1, device=device).sqrt()
            departed = width + DEPARTURE * largest * torch.randn(full.shape, device=device)
            actions = departed.round().clamp(0, largest).to(full.dtype)
        drawn = torch.rand(n, 1, device=device)
        if self.prefixes == "sandwich":
            actions = torch.where(drawn < AT_AN_END, 0, actions)
        return self.network.masked(images, torch.where(drawn >= 1 - AT_AN_END, full, actions))
