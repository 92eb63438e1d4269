"""A method looks the same wherever it is drawn."""

import pytest

from orchestrator.methods import METHODS
from orchestrator.palette import CONTROLS, DARK, LIGHT, PLACES, Palette, method_marks


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    shares = [byte / 255 for byte in bytes.fromhex(colour[1:])]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_registered_method_has_a_colour_and_shape_for_good_in_every_sweep() -> None:
    assert set(METHODS) <= {*PLACES, *CONTROLS}, "a registered method needs a place in the palette"
    whole = method_marks([*PLACES, *CONTROLS], LIGHT)
    assert len(set(whole.values())) == len(whole)
    for method in whole:
        assert method_marks([method], LIGHT) == {method: whole[method]}
        assert method_marks(["my.own:Method", method], LIGHT)[method] == whole[method]


@pytest.mark.parametrize(
    "together",
    [
        ["vanilla", "rnp", "l1_filter", "magnitude", "thinet", "policy_gradient", "static_prefix"],
        ["vanilla", "l1_filter", "thinet", "policy_gradient", "amc", "pcas", "class_statistics"],
        ["rnp", "static_prefix", "rnp_groups", "cascade", "cascade_random", "second_look", "fbs"],
        ["rnp", "fbs", "network_routing", "static_prefix", "vanilla", "feature_maps"],
        ["magnitude", "str", "autoprune", "joint_sparsity", "bit_pruning", "vanilla"],
    ],
    ids=["quick", "channels", "per image", "runtime", "weights"],
)
def test_methods_that_stand_side_by_side_have_other_colours(together: list[str]) -> None:
    for palette in (LIGHT, DARK):
        marks = method_marks([*together, *CONTROLS], palette)
        assert len({colour for colour, _ in marks.values()}) == len(marks)


def test_methods_of_users_get_marks_that_no_registered_method_has() -> None:
    mine = [f"my.own:Method{number}" for number in range(20)]
    marks = method_marks([*mine, *PLACES], LIGHT)
    assert list(marks) == [*mine, *PLACES]
    assert len(set(marks.values())) == len(marks)
    assert len({marks[method][0] for method in mine[:10]}) == 10


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_stands_out_from_its_surface(palette: Palette) -> None:
    surface = luminance(palette.surface)
    for colour in (*palette.methods, palette.ink, palette.muted, palette.control):
        high, low = sorted((surface, luminance(colour)), reverse=True)[:2]
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    assert len(set(palette.methods)) == len(palette.methods)
