"""Makes a backbone work on prefixes of its channels, before anything decides which.

Every image of a training batch runs with prefixes drawn at random, so that one set of weights
serves all of them (slimmable networks: Yu et al. 2019, arXiv 1812.08928). Batch-norm statistics are
then estimated for each prefix. RNP and its control, `static_prefix`, start from the same adapted
backbone. It serves all their penalties and budgets: see `shared_stage`.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rnp.batch_norm_statistics import by_batch, estimate_statistics
from rnp.runtime_network import RuntimeNetwork
from rnp.structure.channel_flow import ChannelFlow, channel_flow
from rnp.structure.channel_order import order_channels
from testbed.data import Splits
from testbed.method import OwnTeacher, Run
from testbed.prediction import evaluating
from testbed.shared_stage import obtain_stage

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
    """Share of the loss that compares with the outputs of the full width; the labels' is the rest.
    In the adaptation in place, with the full width as it trains meanwhile (Yu and Huang 2019; but
    images at full width have that loss, too). In later fine-tuning, which rarely trains it, with it
    as it was before."""

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        """See `SharesStage`."""
        return frozenset(Adaptation.model_fields)

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        """The tensors of the adapted backbone (see `SharesStage`).

        Spends `adaptation` of the fine-tuning epochs, rounded.
        """
        model = copy.deepcopy(model).to(run.device)
        if self.order_channels:
            order_channels(model, channel_flow(model, self.k))
        network = drawn(model, self.k, run)
        epochs = round(self.adaptation * run.fine_tuning.epochs)
        prefixes = RandomPrefixes(network, self.prefixes)
        teacher = self.teacher(network, in_place=True)
        run.fine_tune(prefixes, data, epochs, teacher, judged=False)  # at full width they cost all
        self.random_statistics(network, data, run)
        tensors = network.state_dict()
        return {name: tensors[name] for name in tensors if not name.startswith("decision.")}

    def teacher(self, network: RuntimeNetwork, in_place: bool = False) -> OwnTeacher | None:
        """What fine-tuning distils from: the full width of `network`.

        Args:
            in_place: while it is trained itself.
        """
        if self.distillation == 0:
            return None
        return OwnTeacher(FullWidth(network, in_place), self.distillation)

    def random_statistics(self, network: RuntimeNetwork, data: Splits, run: Run) -> int:
        """Estimates batch norms for prefixes as the adaptation drew them; says on how many images.

        All prefixes are then met, as where decisions are learnt or chosen.
        """
        generator = torch.Generator().manual_seed(run.seed)

        def actions(n: int) -> Tensor:
            return random_prefixes(n, network.flow, self.prefixes, generator)

        return estimate_statistics(network, data, run, actions)


def adapted(
    model: nn.Module,
    data: Splits,
    run: Run,
    options: Adaptation,
    encoding: int = 64,
    hidden: int = 128,
) -> RuntimeNetwork:
    """A copy of `model` that works on any prefixes, with a decision network still to be taught.

    Made once for all trials that agree in `Adaptation.stage_options`.

    Args:
        encoding, hidden: sizes of the decision network, which change nothing of the backbone.

    Raises:
        ValueError: if no conv of `model` can be pruned at run time.
    """
    network = drawn(model, options.k, run, encoding, hidden)
    backbone = obtain_stage(options, model, data, run)
    network.load_state_dict({**network.state_dict(), **backbone})
    return network.eval()


def drawn(
    model: nn.Module, k: int, run: Run, encoding: int = 64, hidden: int = 128
) -> RuntimeNetwork:
    """A copy of `model` with a decision network drawn by the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        return RuntimeNetwork(model, k, encoding, hidden).to(run.device)


class RandomPrefixes(nn.Module):
    """Draws the prefixes of each image while training; keeps all channels in evaluation mode."""

    def __init__(self, network: RuntimeNetwork, prefixes: Prefixes) -> None:
        super().__init__()
        self.network = network
        self.prefixes = prefixes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        if not self.training:
            return full_width(self.network, images)
        actions = random_prefixes(
            len(images), self.network.flow, self.prefixes, device=images.device
        )
        return self.network.masked(images, actions)


class FullWidth(nn.Module):
    """A network at full width, to distil from, in place if it is trained itself.

    It is then normalised by the statistics of each batch. Running ones follow weights late: taught
    by them, a ResNet-20 at a learning rate of 0.2 came to 0.17 in place of 0.51.
    """

    def __init__(self, network: RuntimeNetwork, in_place: bool) -> None:
        super().__init__()
        self._network = (network,)  # no part of this module, or it would be given its mode
        self._in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W), without gradients.

        The network stays as it is, but for counts of batches.
        """
        (network,) = self._network
        normalised = by_batch(network, momentum=0) if self._in_place else evaluating(network)
        with torch.no_grad(), normalised:
            return full_width(network, images)


def full_width(network: RuntimeNetwork, images: Tensor) -> Tensor:
    """Logits (n, classes) with all channels."""
    shape = len(images), len(network.flow.convs)
    return network.masked(images, torch.full(shape, network.flow.groups - 1, device=images.device))


def random_prefixes(
    n: int,
    flow: ChannelFlow,
    prefixes: Prefixes,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Actions of n images, (n, decisions) int64 (see `Adaptation.prefixes`).

    Args:
        generator: on the device; None for its own.
        device: None for the CPU.
    """
    given: dict[str, Any] = {"generator": generator, "device": device}
    shape, largest = (n, len(flow.convs)), flow.groups - 1
    if prefixes == "sandwich":
        actions = torch.randint(largest + 1, shape, **given)
    else:
        # The root makes wide networks the likelier ones: what narrow ones learn disturbs most.
        width = largest * torch.rand(n, 1, **given).sqrt()
        departed = width + DEPARTURE * largest * torch.randn(shape, **given)
        actions = departed.round().clamp(0, largest).long()
    drawn = torch.rand(n, 1, **given)
    if prefixes == "sandwich":
        actions = torch.where(drawn < AT_AN_END, 0, actions)
    return torch.where(drawn >= 1 - AT_AN_END, largest, actions)
