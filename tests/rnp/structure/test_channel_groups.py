"""Groups of channels: what holds for every layer."""

from itertools import product

import pytest

from rnp.structure.channel_groups import group_sizes, prefix_sizes

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
def test_groups_are_as_even_as_their_multiple_allows(channels: int, groups: int) -> None:
    sizes = group_sizes(channels, groups)
    unit = 16 if channels >= 16 * groups else 1
    assert all(size % unit == 0 for size in sizes[:-1])
    assert sizes[0] - sizes[-2] <= unit
    assert sizes[0] - sizes[-1] < 2 * unit


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [
        (64, (16, 16, 16, 16)),
        (128, (32, 32, 32, 32)),
        (80, (32, 16, 16, 16)),
        (100, (32, 32, 32, 4)),
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


@pytest.mark.parametrize(("channels", "groups"), [(0, 4), (8, 1), (8, 0)])
def test_no_channels_or_one_group_is_an_error(channels: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"got {channels} and {groups}"):
        group_sizes(channels, groups)
