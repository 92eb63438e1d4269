"""How the channels of a conv are split into groups, and which of them an action computes."""

from itertools import accumulate

MULTIPLE = 16  # channels that vector units and matrix kernels take at once


def group_sizes(channels: int, groups: int) -> tuple[int, ...]:
    """Sizes of `groups` groups of consecutive channels, as even as possible, larger ones first.

    Layers of at least 16 channels a group get groups of multiples of 16, but for the last one,
    which holds what is left. A layer of fewer channels than groups has empty groups at its
    end, so that every layer has the same number of actions.

    Raises:
        ValueError: if there is no channel, or fewer than two groups.
    """
    if channels < 1 or groups < 2:
        raise ValueError(
            f"Expected at least one channel and two groups, got {channels} and {groups}."
        )
    unit = MULTIPLE if channels >= MULTIPLE * groups else 1
    each, more = divmod(-(-channels // unit), groups)
    sizes = [unit * (each + (group < more)) for group in range(groups)]
    sizes[-1] -= sum(sizes) - channels
    return tuple(sizes)


def prefix_sizes(channels: int, groups: int) -> tuple[int, ...]:
    """How many channels each action computes: groups 1 to i for action i (index i - 1)."""
    return tuple(accumulate(group_sizes(channels, groups)))
