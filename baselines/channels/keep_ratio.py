"""Keep ratio: a share of every group's channels, or the one that leaves a share of the cost."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from baselines.channels.channel_groups import ChannelGroups, Keep, Scope, channel_groups, listed
from baselines.channels.channel_removal import example_images, remove_channels
from baselines.channels.multiplications import Multiplications
from testbed.data import Splits

KeepRatio = Annotated[
    float, Field(gt=0, le=1, description="Share of its channels that every group keeps.")
]
KeepMultiplications = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="Share of the dense network's multiplications to keep, at most.",
    ),
]
RoundTo = Annotated[
    int,
    Field(ge=1, description="Groups of this many channels or more keep a multiple of it."),
]
DEFAULT_KEEP_RATIO = 0.5
LARGEST_MISS = 0.1  # relative; how far below the share asked for the nearest one may lie


def n_removed(keep_ratio: float, channels: int, round_to: int = 1) -> int:
    """How many of a group's `channels` go at `keep_ratio`: the one rule of every channel method.

    One channel stays at least. Halves are rounded to even, as Python and `ln_structured` of
    `torch.nn.utils.prune`, with `amount=1 - keep_ratio`, round them. With `round_to` a multiple of
    it stays, the next lower one, where the group has as many.
    """
    kept = channels - min(round((1 - keep_ratio) * channels), channels - 1)
    return channels - multiple(kept, channels, round_to)


def multiple(kept: int, channels: int, round_to: int) -> int:
    """The next lower multiple of `round_to`, one of it at least, where a group has as many."""
    if kept == channels or channels < round_to:
        return kept
    return max(round_to, kept - kept % round_to)


@dataclass(frozen=True)
class Amount:
    """What a channel method is to remove."""

    groups: ChannelGroups
    keep_ratio: float
    removed: Mapping[str, int]
    """How many channels of each group go."""

    def kept_after(self, name: str, part: float = 1.0) -> int:
        """How many channels of a group stay when a part of the way is gone, from 0 to 1."""
        channels = self.groups[name].channels
        last = channels - self.removed[name]
        return (
            last if part == 1 else max(last, channels - n_removed(self.keep_ratio**part, channels))
        )


class AmountOptions(BaseModel):
    """Options of channel methods: how much to keep, by one of both amounts, and what to spare."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: KeepRatio | None = None
    keep_multiplications: KeepMultiplications | None = None
    scope: Scope = "inside_blocks"
    keep: Keep = ()
    round_to: RoundTo = 1

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, options: Any) -> Any:
        """Refuses both amounts; fills in the default."""
        if not isinstance(options, Mapping):
            return options
        given = [o for o in ("keep_ratio", "keep_multiplications") if options.get(o) is not None]
        if len(given) == 2:
            raise ValueError("give keep_ratio or keep_multiplications, not both")
        return options if given else {**options, "keep_ratio": DEFAULT_KEEP_RATIO}

    def check_network(self, dense: nn.Module, data: Splits) -> None:
        """See `ChecksNetwork`."""
        self.amount(dense, example_images(data, torch.device("cpu")))

    def groups(self, network: nn.Module, example: Tensor) -> ChannelGroups:
        """The groups that may lose channels (see `channel_groups`)."""
        return channel_groups(network, example, scope=self.scope, keep=self.keep)

    def amount(self, network: nn.Module, example: Tensor) -> Amount:
        """How many channels of each group go.

        Args:
            example: (n, channels, height, width), a valid input, on the network's device.

        Raises:
            ValueError: if no group can be pruned, no channel would go though less than all is to be
                kept, or the share of multiplications cannot be reached.
        """
        groups = self.groups(network, example)
        if self.keep_ratio is None:
            assert self.keep_multiplications is not None
            return amount_for(self.keep_multiplications, groups, self.round_to)
        removed = _removed(self.keep_ratio, groups, self.round_to)
        if self.keep_ratio < 1 and not any(removed.values()):
            widest = max(group.channels for group in groups.values())
            raise ValueError(
                f"keep_ratio {self.keep_ratio:g} removes nothing: of the {widest} channels of the "
                f"widest group it takes {(1 - self.keep_ratio) * widest:.2g}, which rounds to "
                f"none. Ask for less than {1 - 0.5 / widest:.4g}, or for 1 to keep all."
            )
        return Amount(groups, self.keep_ratio, removed)


class KeepAmount(AmountOptions):
    """Options of methods that thin every group by the same keep ratio."""

    def foreseen(self, dense: nn.Module, data: Splits) -> nn.Module:
        """A network as large as the one to come, on the CPU (see `Foresees`)."""
        network, example = copy.deepcopy(dense).cpu(), example_images(data, torch.device("cpu"))
        amount = self.amount(network, example)
        removed = {name: range(n) for name, n in amount.removed.items()}
        return remove_channels(network, example, amount.groups, removed)


def _removed(keep_ratio: float, groups: ChannelGroups, round_to: int) -> dict[str, int]:
    return {name: n_removed(keep_ratio, group.channels, round_to) for name, group in groups.items()}


def amount_for(share: float, groups: ChannelGroups, round_to: int = 1) -> Amount:
    """What leaves the largest share of the dense multiplications that is at most `share`.

    One keep ratio is found by bisection; groups that rounding took most from then get a channel
    back, as long as the share allows it.

    Raises:
        ValueError: if the nearest one is more than a tenth below.
    """
    if share == 1:
        return Amount(groups, 1.0, dict.fromkeys(groups, 0))
    costs = Multiplications(groups)
    below, above = 0.0, 1.0  # the share rises in steps with the ratio
    while above - below > 1e-6:
        middle = (below + above) / 2
        fits = costs.share(_removed(middle, groups, round_to)) <= share
        below, above = (middle, above) if fits else (below, middle)
    removed = _removed(below, groups, round_to)
    by_rounding = {name: n - (1 - below) * groups[name].channels for name, n in removed.items()}
    for name in sorted(by_rounding, key=lambda name: -by_rounding[name]):
        step = round_to if groups[name].channels >= round_to else 1
        less = {**removed, name: max(0, removed[name] - step)}
        if sum(less.values()) and costs.share(less) <= share:
            removed = less
    reached = costs.share(removed)
    if not share * (1 - LARGEST_MISS) <= reached <= share:
        least = costs.share(_removed(0.0, groups, round_to))
        held = listed(groups.kept_whole)
        raise ValueError(
            f"keep_multiplications {share:g} cannot be reached within {LARGEST_MISS:.0%}: the "
            f"nearest that thinning every group of this network comes to is {reached:.3g}, in a "
            f"range from {least:.3g} (one channel in each) to 1. "
            + (f"These layers keep their channels: {held}. " if held else "")
            + "Ask for a share in that range."
        )
    return Amount(groups, below, removed)
