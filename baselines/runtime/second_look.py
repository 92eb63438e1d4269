"""Second look: a network looks again, at the mirrored image, where it was unsure of the first.

Averaging over mirrored images is as old as Krizhevsky, Sutskever, Hinton 2012, "ImageNet
classification with deep convolutional neural networks", NIPS 25, where every image gets it. Here
those get it whose margin between the two most probable classes is small.

A thin network of the dense one's kind is trained from scratch as `vanilla` trains it, narrow enough
that the second looks fit into the budget. A trial that may be stopped early is judged by the first
look alone.

Where we differ: the two looks' log-probabilities are averaged with a weight. The threshold and the
weight are chosen for the budget, on a part of the validation images (`choice_share`); every
accuracy that is reported is of the others (`held_back`).

Its output runs fewer multiplications, some images twice those of others.
"""

import copy

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from baselines.channels.channel_groups import Keep, Scope
from baselines.channels.keep_ratio import KeepMultiplications
from baselines.channels.vanilla import Vanilla
from baselines.runtime.cascade_network import CascadeNetwork, Confidence
from baselines.runtime.stages import (
    ChoiceShare,
    check_mirror,
    check_outputs,
    costs_of_looks,
    looks_of,
    report_decisions,
    set_decisions,
    shares_of,
)
from baselines.runtime.thresholds import chosen_decisions
from testbed.data import Splits
from testbed.held_back import divided
from testbed.method import Run


class SecondLook(BaseModel):
    """The budget, and how it is divided between width and second looks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keep_multiplications: KeepMultiplications = 0.5
    second_looks: float = Field(default=0.35, gt=0, le=1)
    """Share of the images that the network is narrow enough for to look at twice."""
    confidence: Confidence = "margin"
    """As of `cascade`."""
    choice_share: ChoiceShare = 0.5
    scope: Scope = "inside_blocks"
    keep: Keep = ()

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that choose nothing (see `HoldsBack`)."""
        return divided(data, self.choice_share, "choice_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        check_outputs(dense, data)
        check_mirror(data)
        try:
            self._thin.foreseen(dense, data)
        except ValueError as error:
            raise ValueError(
                f"The network that leaves {self.second_looks:g} of its cost for second looks: "
                f"{error}"
            ) from error
        self.held_back(data)

    def skeleton(self, dense: nn.Module) -> CascadeNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        return CascadeNetwork([copy.deepcopy(dense)], self.confidence, mirror=True)

    def prune(self, model: nn.Module, data: Splits, run: Run) -> nn.Module:
        """A `CascadeNetwork` of one network that looks twice (see `PruningMethod`)."""
        self.check_network(model, data)
        images, judged = divided(data, self.choice_share, "choice_share")
        thin = self._thin.prune(model, judged, run)
        network = CascadeNetwork([thin], self.confidence, mirror=True).to(run.device)
        costs = costs_of_looks(network, data)
        share, _ = shares_of([thin, model], data)
        decisions = chosen_decisions(
            looks_of(network, images, data, run),
            images.labels.cpu(),
            costs,
            self.keep_multiplications / share * costs[0],
            self.confidence,
        )
        report_decisions(decisions, run)
        set_decisions(network, decisions)
        return network.eval()

    @property
    def _thin(self) -> Vanilla:
        share = self.keep_multiplications / (1 + self.second_looks)
        return Vanilla(keep_multiplications=share, scope=self.scope, keep=self.keep)
