"""Decision for or against a cascade of a sweep's own networks, within limits.

The images that choose name the cascade and the network alone; those that judge must find the
cascade ahead of it by more than two standard errors, over the seeds where there are several. It
must be so far ahead, too, of whatever was judged on other images, by accuracies of each one's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from orchestrator.analysis.cascades import OwnCascade, evenly, frontier, frontier_of, judged
from orchestrator.analysis.contender import Limits
from orchestrator.analysis.own_networks import OwnNetworks, completed, own_networks
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import standard_error, t_interval

MOST_SHOWN = 12  # cascades of a cell and seed


@dataclass(frozen=True)
class Ahead:
    """A cascade that is ahead of every network alone."""

    cascade: OwnCascade
    """Of several seeds the one that the choosing images prefer."""
    points: float
    """Mean over the seeds."""
    error: float
    """The standard error of that, of the images."""
    n: int
    """How many seeds."""


@dataclass(frozen=True, eq=False)
class OwnCascades:
    """All that a sweep's own networks offer in cascades."""

    result: SweepResult

    @cached_property
    def groups(self) -> list[tuple[OwnNetworks, pd.DataFrame]]:
        """The networks that can be combined, and the `frontier` of their cascades."""
        groups = [(networks, frontier(networks)) for networks in own_networks(self.result)]
        return [(networks, own) for networks, own in groups if len(own)]

    def shown(self) -> list[tuple[OwnNetworks, list[OwnCascade]]]:
        """Of each group some cascades, each beside the best network alone that costs no more."""
        return [
            (
                networks,
                [
                    _beside(networks, own.iloc[place], own["multiplications"].iloc[place])
                    for place in evenly(len(own), MOST_SHOWN)
                ],
            )
            for networks, own in self.groups
        ]

    def ahead(self, cell: str, limits: Limits) -> Ahead | None:
        """The best cascade of a cell, if it is ahead of every network alone.

        Args:
            limits: of multiplications; under others there is none.
        """
        if not compete(limits):
            return None
        rows = completed(self.result)
        found = [
            self._of_seed(own, limits) for _, own in rows[rows["cell"] == cell].groupby("seed")
        ]
        known = [each for each in found if each is not None]
        if not known or len(known) < len(found):
            return None
        each = [own.ahead for own in known]
        points, error = float(np.mean(each)), math.hypot(*(own.error for own in known)) / len(known)
        margin = 2 * error
        if len(known) > 1:
            low, high = t_interval(each)
            margin = math.hypot(margin, (high - low) / 2)
        best = max(known, key=lambda own: (own.chosen_by, -own.multiplications))
        return Ahead(best, points, error, len(known)) if points > margin else None

    def _of_seed(self, rows: pd.DataFrame, limits: Limits) -> OwnCascade | None:
        """The cascade of one cell and seed that the choosing images prefer to any network alone.

        Of networks that were judged on different images the largest group is combined.
        """
        ids = set(rows["trial_id"])
        groups = [each for each in self.groups if ids.issuperset(each[0].rows["trial_id"])]
        if not groups:
            return None
        networks, own = max(groups, key=lambda each: len(each[0].rows))
        share = own["multiplications"] / networks.dense_multiplications
        cascades = limits.hold(own.assign(share=share))
        alone = limits.hold(networks.alone)
        if cascades.empty or cascades["val_accuracy"].iloc[0] <= alone["val_accuracy"].iloc[0]:
            return None
        best = cascades.iloc[0]
        found = judged(networks, best["members"], best["thresholds"], alone.index[0])
        others = limits.hold(rows[~rows["trial_id"].isin(networks.rows["trial_id"])])
        return found if others.empty or _told_apart(found, others.iloc[0]) else None


def compete(limits: Limits) -> bool:
    """Whether cascades compete within limits: of multiplications, and no others.

    Their latency is not measured before they are exported; and what an accuracy asks for is the
    cheapest network, not the most accurate.
    """
    return limits == Limits(share=limits.share, multiplications=limits.multiplications)


def named_cascade(
    result: SweepResult, trial_ids: Sequence[str], multiplications: float = math.inf
) -> OwnCascade:
    """The cascade of these networks that the choosing images prefer within a limit.

    Args:
        trial_ids: in the order in which they look.

    Raises:
        ValueError: if they make none; says why.
    """
    asked = ", ".join(trial_ids)
    if len(trial_ids) not in (2, 3) or len(set(trial_ids)) < len(trial_ids):
        raise ValueError(f"Expected two or three different networks for a cascade, got {asked}.")
    groups = own_networks(result)
    known = {name for each in groups for name in each.rows["trial_id"]}
    if unknown := [name for name in trial_ids if name not in known]:
        raise ValueError(
            f"{', '.join(unknown)}: expected completed trials of the search that left their "
            "logits, to make a cascade of. trials.csv has every trial_id and its status."
        )
    together = (each for each in groups if set(trial_ids) <= set(each.rows["trial_id"]))
    if (networks := next(together, None)) is None:
        raise ValueError(
            f"A cascade of {asked}: expected networks of one cell and seed that were judged on the "
            "same validation images. A method that learns from some of them is judged on the rest."
        )
    members = [networks.place(name) for name in trial_ids]
    if not networks.fixed[members].all():
        raise ValueError(
            f"A cascade of {asked}: expected networks that spend the same on every image, got one "
            "that decides per image."
        )
    own = frontier_of(networks, members)
    within = own[own["multiplications"] <= multiplications]
    if within.empty:
        raise ValueError(
            f"The cheapest cascade of {asked} has {own['multiplications'].min():,.0f} "
            f"multiplications, more than {multiplications:,.0f}: relax the limit."
        )
    best = _best(within)
    unlimited = math.isinf(multiplications)
    return _beside(networks, best, best["multiplications"] if unlimited else multiplications)


def _beside(networks: OwnNetworks, cascade: pd.Series, multiplications: float) -> OwnCascade:
    """A cascade of a `frontier`, beside the best network alone within so many multiplications."""
    alone = _best(networks.alone[networks.costs <= multiplications])
    place = networks.place(alone["trial_id"])
    return judged(networks, cascade["members"], cascade["thresholds"], place)


def _best(rows: pd.DataFrame) -> pd.Series:
    """The row that the choosing images prefer; of equally accurate ones the cheapest."""
    order, ascending = ["val_accuracy", "multiplications"], [False, True]
    return rows.sort_values(order, ascending=ascending, kind="stable").iloc[0]


def _told_apart(cascade: OwnCascade, other: pd.Series) -> bool:
    """Whether a cascade is ahead of a network that was judged on other images."""
    pairs = (cascade.accuracy, cascade.images), (other["val_accuracy"], other["validation_images"])
    margin = 2 * math.hypot(*(standard_error(*pair) for pair in pairs))
    return bool(100 * (cascade.accuracy - other["val_accuracy"]) > margin)
