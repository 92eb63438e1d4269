"""Stages of a cascade: thin networks of a dense one, each trained from scratch, and that one last.

`cascade` and its control `cascade_random` have them in common. They are trained once for all
budgets of a method: see `shared_stage`.
"""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from baselines.channels.channel_groups import Keep, Scope
from baselines.channels.keep_ratio import KeepMultiplications
from baselines.channels.vanilla import Vanilla
from baselines.runtime.cascade_network import CascadeNetwork, Confidence
from baselines.runtime.thresholds import Decisions, chosen_decisions
from testbed.checkpoint import Checkpoint
from testbed.cost import multiplications_by_layer
from testbed.data import Images, Splits
from testbed.held_back import divided
from testbed.method import Run
from testbed.prediction import check_logits, evaluating, predict
from testbed.shared_stage import obtain_stage

LOOKED_AT = 8  # images, to see whether a network gives logits

ChoiceShare = Annotated[
    float,
    Field(gt=0, lt=1, description="Of the validation images: those that decisions are chosen on."),
]


class Stages(BaseModel):
    """Options of cascades."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stages: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.12, 0.41), min_length=1)
    """Shares of the dense multiplications, rising; the dense network comes after them."""
    keep_multiplications: KeepMultiplications = 0.5
    confidence: Confidence = "margin"
    """What an image goes on for lack of: the margin between its two most probable classes, or the
    most probable one's probability."""
    average: bool = True
    """Average the answers of all looks; else the last look's answer counts alone."""
    mirror: bool = False
    """A last look of the dense network, at the mirrored image."""
    choice_share: ChoiceShare = 0.5
    scope: Scope = "inside_blocks"
    keep: Keep = ()

    @field_validator("stages")
    @classmethod
    def _rise(cls, stages: tuple[float, ...]) -> tuple[float, ...]:
        if any(first >= second for first, second in pairwise(stages)):
            raise ValueError(
                "expected shares that rise, as each stage answers what the one before it is unsure "
                f"of, got {', '.join(f'{share:g}' for share in stages)}"
            )
        return stages

    def held_back(self, data: Splits) -> Splits:
        """`data` with only the validation images that choose nothing (see `HoldsBack`)."""
        return divided(data, self.choice_share, "choice_share")[1]

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        check_outputs(dense, data)
        if self.mirror:
            check_mirror(data)
        thin = []
        for share in self.stages:
            try:
                thin.append(self._thin(share).foreseen(dense, data))
            except ValueError as error:
                raise ValueError(f"stages, the one of {share:g}: {error}") from error
        shares = shares_of([*thin, dense], data)
        for number, (first, second) in enumerate(pairwise(shares), 1):
            if not first < second:
                raise ValueError(
                    f"stages: number {number} and the one after it cannot be told apart, as both "
                    f"come to {first:.3g} of the multiplications. Ask for shares further apart."
                )
        check_budget(self.keep_multiplications, shares[0], "the first stage alone")
        self.held_back(data)

    def skeleton(self, dense: nn.Module) -> CascadeNetwork:
        """A network of the structure that `prune` makes of `dense`, for weights to be loaded."""
        networks = [copy.deepcopy(dense) for _ in range(len(self.stages) + 1)]
        return CascadeNetwork(networks, self.confidence, self.mirror)

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        """What networks are made of, and what their accuracies are of (see `SharesStage`)."""
        return frozenset({"stages", "scope", "keep", "choice_share"})

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        """The tensors of all stages, trained (see `SharesStage`).

        Resumes after the last complete one, if the run's folder holds a checkpoint.
        """
        network = self.skeleton(model).to(run.device)
        checkpoint = Checkpoint(self, model, data, run)
        completed = checkpoint.load(network)
        for number, share in enumerate(self.stages):
            if number > completed:
                own = run.beside(f"stage{number + 1}")
                network.networks[number] = self._thin(share).prune(model, data, own)
                checkpoint.save(number, network)
        network.networks[-1] = copy.deepcopy(model).to(run.device)
        run.fine_tune(network.networks[-1], data, judged=False)  # alone it costs all
        return network.networks.state_dict()

    def trained(
        self, model: nn.Module, data: Splits, run: Run
    ) -> tuple[CascadeNetwork, Decisions, Tensor]:
        """The stages, trained; the best decisions of a cascade of them; and what these are of.

        Returns:
            the network without its decisions; the decisions; (looks, n, classes) log-probabilities
            of the images that they were chosen on.

        Raises:
            ValueError: before any work, as `check_network`.
        """
        self.check_network(model, data)
        images, judged = divided(data, self.choice_share, "choice_share")
        network = self.skeleton(model)
        for number, share in enumerate(self.stages):
            network.networks[number] = self._thin(share).foreseen(model, data)
        network.networks.load_state_dict(obtain_stage(self, model, judged, run))
        network.to(run.device)
        looks = looks_of(network, images, data, run)
        costs = costs_of_looks(network, data)
        decisions = chosen_decisions(
            looks,
            images.labels.cpu(),
            costs,
            self.keep_multiplications * costs[len(self.stages)],
            self.confidence,
            self.average,
        )
        report_decisions(decisions, run)
        return network.eval(), decisions, looks

    def _thin(self, share: float) -> Vanilla:
        return Vanilla(keep_multiplications=share, scope=self.scope, keep=self.keep)


def set_decisions(network: CascadeNetwork, decisions: Decisions) -> None:
    """Lets a network decide so."""
    network.thresholds.copy_(torch.tensor(decisions.thresholds))
    network.weights.copy_(torch.tensor(decisions.weights))


def report_decisions(decisions: Decisions, run: Run) -> None:
    """Reports the share of the choosing images that comes to each look after the first."""
    later = enumerate(decisions.reached[1:], start=2)
    run.report({f"reached.look{number}": share for number, share in later})


def looks_of(network: CascadeNetwork, images: Images, data: Splits, run: Run) -> Tensor:
    """What each look gives of images: (looks, n, classes) log-probabilities, on the CPU."""
    precision = run.fine_tuning.precision
    logits = [
        predict(_Look(network, number), images, data, device=run.device, precision=precision)
        for number in range(network.looks)
    ]
    return torch.stack(logits).log_softmax(dim=2)


def costs_of_looks(network: CascadeNetwork, data: Splits) -> list[int]:
    """Multiplications of each look at an image."""
    costs = [_multiplications(each, data) for each in network.networks]
    return costs + costs[-1:] * network.mirror


def shares_of(networks: list[nn.Module], data: Splits) -> list[float]:
    """Multiplications of each network, as shares of the last one's."""
    costs = [_multiplications(network, data) for network in networks]
    return [cost / costs[-1] for cost in costs]


def check_outputs(dense: nn.Module, data: Splits) -> None:
    """
    Raises:
        ValueError: if there are no two classes to be unsure between, or the network's outputs are
            no logits of them.
    """
    if data.n_classes < 2:
        raise ValueError(
            f"Expected data of two or more classes, to be unsure between, got {data.n_classes}."
        )
    device = next(dense.parameters()).device
    inputs = data.normalised(data.validation[:LOOKED_AT].to(device))[:]
    with evaluating(dense), torch.no_grad():
        outputs = dense(inputs)
    check_logits(outputs, len(inputs), data.n_classes)
    sums = outputs.float().sum(dim=1)
    if (outputs >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ValueError(
            "Expected a network whose outputs are logits, got probabilities: of each image they "
            "are positive and sum to 1. Let its forward end before the softmax."
        )


def check_mirror(data: Splits) -> None:
    """
    Raises:
        ValueError: if training images are not mirrored.
    """
    if not data.augmentation.flip:
        raise ValueError(
            "A look at the mirrored image needs data whose classes stay the same in a mirror, and "
            "here training images are not mirrored. Set data.flip: true if they do, or leave the "
            "mirror out."
        )


def check_budget(budget: float, least: float, what: str) -> None:
    """
    Raises:
        ValueError: if a share of the dense multiplications is less than the least to be had.
    """
    if budget < least:
        raise ValueError(
            f"keep_multiplications {budget:g} cannot be reached: {what} takes {least:.3g} of the "
            "multiplications. Ask for that or more, or for a narrower network."
        )


class _Look(nn.Module):
    """One look of a cascade as a network."""

    def __init__(self, network: CascadeNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, images: Tensor) -> Tensor:
        return self.network.look(self.number, images)


def _multiplications(network: nn.Module, data: Splits) -> int:
    """Of one image, of no content."""
    return multiplications_by_layer(network, torch.zeros(1, *data.input_shape)).total()
