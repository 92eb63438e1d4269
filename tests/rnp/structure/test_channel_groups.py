"""Groups of channels: what holds for every layer."""

from itertools import product

import pytest

from rnp.structure.channel_groups import (
    group_sizes,
    prefix_sizes,
    prefix_sizes_of_older_files,
)

CASES = list(product([1, 2, 3, 4, 5, 12, 20, 31, 50, 64, 65, 100, 128, 200, 512], [2, 3, 4, 8, 16]))


@pytest.mark.parametrize(("channels", "groups"), CASES)
def test_the_groups_hold_all_channels_and_there_are_as_many_as_asked_for(
    channels: int, groups: int
) -> None:
    sizes = group_sizes(channels, groups)
    assert sum(sizes) == channels
    assert len(sizes) == groups
    assert min(sizes) >= 0


@pytest.mark.parametrize(("channels", "groups"), CASES)
def test_larger_groups_come_first_and_the_first_is_never_empty(channels: int, groups: int) -> None:
    sizes = group_sizes(channels, groups)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[0] > 0


@pytest.mark.parametrize(("channels", "groups"), CASES)
def test_no_group_is_larger_than_another_by_more_than_one_channel(
    channels: int, groups: int
) -> None:
    sizes = group_sizes(channels, groups)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [
        (64, (16, 16, 16, 16)),
        (128, (32, 32, 32, 32)),
        (80, (20, 20, 20, 20)),
        (100, (25, 25, 25, 25)),
        (63, (16, 16, 16, 15)),
        (50, (13, 13, 12, 12)),
        (3, (1, 1, 1, 0)),
    ],
)
def test_four_groups_by_hand(channels: int, sizes: tuple[int, ...]) -> None:
    assert group_sizes(channels, 4) == sizes


def test_an_action_computes_the_groups_up_to_its_own() -> None:
    assert prefix_sizes(50, 4) == (13, 26, 38, 50)
    assert prefix_sizes(3, 4) == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("channels", "prefixes"),
    [
        (64, (16, 32, 48, 64)),
        (80, (32, 48, 64, 80)),
        (100, (32, 64, 96, 100)),
        (63, (16, 32, 48, 63)),
        (50, (13, 26, 38, 50)),
        (3, (1, 2, 3, 3)),
    ],
)
def test_older_files_had_groups_of_multiples_of_16(
    channels: int, prefixes: tuple[int, ...]
) -> None:
    assert prefix_sizes_of_older_files(channels, 4) == prefixes


@pytest.mark.parametrize(("channels", "groups"), [(0, 4), (8, 1), (8, 0)])
def test_no_channels_or_one_group_is_an_error(channels: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"got {channels} and {groups}"):
        group_sizes(channels, groups)
