"""Makes a backbone work on prefixes of its channels, before anything decides which.

Every image of a training batch runs with prefixes drawn at random, so that one set of weights
serves all of them (slimmable networks: Yu et al. 2019, arXiv 1812.08928). RNP and its control,
`static_prefix`, start from the same adapted backbone.
"""

import copy

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rnp.channel_flow import channel_flow
from rnp.channel_order import order_channels
from rnp.runtime import RuntimeNetwork
from testbed.data import Splits
from testbed.method import OwnTeacher, Run

SANDWICHED = 0.25  # share of the images at full width, and as many at the least


class Adaptation(BaseModel):
    """What RNP and `static_prefix` have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(
        default=4, ge=2, le=16, description="Channel groups of every conv, as in the paper."
    )
    adaptation: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of the fine-tuning epochs that goes to random prefixes.",
    )
    order_channels: bool = Field(
        default=True, description="Group channels by importance, so that small prefixes hold most."
    )
    sandwich: bool = Field(
        default=True,
        description="A quarter of the images at full width, a quarter at the least; else all "
        "random. The ends are what all prefixes lie between (Yu and Huang 2019).",
    )
    distillation: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the loss that compares with the outputs of the full width, as the "
        "dense network was trained; the labels' is the rest. In all of the fine-tuning.",
    )

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
    prefixes = RandomPrefixes(network, options.sandwich)
    run.fine_tune(prefixes, data, epochs, teacher, judged=False)  # at full width they cost all
    return network


class RandomPrefixes(nn.Module):
    """Draws the prefixes of each image while training; keeps all channels in evaluation mode."""

    def __init__(self, network: RuntimeNetwork, sandwich: bool) -> None:
        super().__init__()
        self.network = network
        self.sandwich = sandwich

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        n_actions, n_steps = self.network.flow.groups, len(self.network.flow.convs)
        shape = (len(images), n_steps)
        largest = torch.full(shape, n_actions - 1, device=images.device)
        if not self.training:
            return self.network.masked(images, largest)
        actions = torch.randint(n_actions, shape, device=images.device)
        if self.sandwich:
            drawn = torch.rand(len(images), 1, device=images.device)
            actions = torch.where(drawn < SANDWICHED, 0, actions)
            actions = torch.where(drawn >= 1 - SANDWICHED, largest, actions)
        return self.network.masked(images, actions)
