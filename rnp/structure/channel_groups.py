"""How the channels of a conv are split into groups, and which of them an action computes."""

from itertools import accumulate

OLDER_MULTIPLE = 16  # channels that groups of older files were made of


def group_sizes(channels: int, groups: int) -> tuple[int, ...]:
    """Sizes of `groups` groups of consecutive channels, as even as possible, larger ones first.

    A layer of fewer channels than groups has empty groups at its end, so that every layer has the
    same number of actions.

    Raises:
        ValueError: if there is no channel, or fewer than two groups.
    """
    if channels < 1 or groups < 2:
        raise ValueError(
            f"Expected at least one channel and two groups, got {channels} and {groups}."
        )
    each, more = divmod(channels, groups)
    return tuple(each + (group < more) for group in range(groups))


def prefix_sizes(channels: int, groups: int) -> tuple[int, ...]:
    """How many channels each action computes: groups 1 to i for action i (index i - 1)."""
    return tuple(accumulate(group_sizes(channels, groups)))


def prefix_sizes_of_older_files(channels: int, groups: int) -> tuple[int, ...]:
    """As `prefix_sizes`, by the rule of network files that do not hold their prefixes.

    Layers of at least 16 channels a group had groups of multiples of 16, but for the last one,
    which held what was left.
    """
    unit = OLDER_MULTIPLE if channels >= OLDER_MULTIPLE * groups else 1
    prefixes = prefix_sizes(-(-channels // unit), groups)
    return tuple(min(unit * prefix, channels) for prefix in prefixes)
