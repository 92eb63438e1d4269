"""A method looks the same wherever it is drawn."""

import pytest

from orchestrator.methods import METHODS
from orchestrator.palette import DARK, LIGHT, Palette, method_marks

CONTROLS = ["dense", "random_channels"]


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    shares = [byte / 255 for byte in bytes.fromhex(colour[1:])]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_registered_method_has_a_mark_of_its_own_in_every_sweep() -> None:
    whole = method_marks([*METHODS], LIGHT)
    assert len(set(whole.values())) == len(METHODS)
    for method in METHODS:
        assert method_marks([method], LIGHT) == {method: whole[method]}
        assert method_marks(["my.own:Method", method], LIGHT)[method] == whole[method]


def test_methods_of_users_get_marks_that_no_registered_method_has() -> None:
    mine = [f"my.own:Method{number}" for number in range(20)]
    marks = method_marks([*mine, *METHODS], LIGHT)
    assert list(marks) == [*mine, *METHODS]
    assert len(set(marks.values())) == len(marks)
    first = {marks[method][0] for method in mine[:3]}
    assert len(first) == 3


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_stands_out_from_its_surface(palette: Palette) -> None:
    surface = luminance(palette.surface)
    for colour in (*palette.methods, palette.ink, palette.muted, palette.control):
        high, low = sorted((surface, luminance(colour)), reverse=True)[:2]
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    assert len(set(palette.methods)) == len(palette.methods)
