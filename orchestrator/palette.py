"""A colour and a mark for each method, for good: the same in every report and in MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """The colours of a page and its charts, apart also for the colour-blind."""

    surface: str
    ink: str
    muted: str
    grid: str
    control: str
    methods: tuple[str, ...]


# After Okabe and Ito 2008, darkened or lightened until each stands out from its surface.
LIGHT = Palette(
    surface="#ffffff",
    ink="#1b1f24",
    muted="#5b6570",
    grid="#e3e7eb",
    control="#87919c",
    methods=(
        *("#0072b2", "#d55e00", "#009370", "#b5489a", "#b98500", "#3a9bd0", "#7d4b22"),
        *("#5d4fc4", "#6f7f10", "#c2185b"),
    ),
)
DARK = Palette(
    surface="#14171a",
    ink="#eceff2",
    muted="#a3adb8",
    grid="#2d343b",
    control="#8b96a2",
    methods=(
        *("#5aaee8", "#ff8f4f", "#3ccb9d", "#e58fd0", "#edb83f", "#93d8f8", "#c9a07c"),
        *("#a99cff", "#b9cc4a", "#ff7fab"),
    ),
)
CSS = Palette(  # the variables of an HTML page, which serve light, dark and print
    surface="var(--surface)",
    ink="var(--ink)",
    muted="var(--muted)",
    grid="var(--grid)",
    control="var(--control)",
    methods=tuple(f"var(--method-{number})" for number in range(len(LIGHT.methods))),
)

# SVG paths about the origin, for charts and for the page's own legend.
STAR = "M0,-1.6L.36,-.49 1.52,-.49 .58,.19 .94,1.29 0,.61 -.94,1.29 -.58,.19 -1.52,-.49 -.36,-.49Z"
CROSS = "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z"
SHAPES = (
    "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",  # circle
    "M-.9,-.9H.9V.9H-.9Z",  # square
    "M0,-1.15L1.15,.9H-1.15Z",  # triangle
    "M0,-1.3L1.1,0 0,1.3 -1.1,0Z",  # diamond
    "M0,1.15L1.15,-.9H-1.15Z",  # triangle, pointing down
    "M1.15,0L-.9,1.15V-1.15Z",  # and to the right
    "M-1.15,0L.9,-1.15V1.15Z",  # and to the left
)

# A method's place is its colour and its shape. A new method goes to the end, so that none changes.
PLACES = (
    "vanilla", "rnp", "l1_filter", "magnitude", "thinet", "policy_gradient", "static_prefix",
    "class_statistics", "pcas", "amc", "feature_maps", "fbs",
)  # fmt: skip


def method_marks(methods: Sequence[str], palette: Palette) -> dict[str, tuple[str, str]]:
    """Each method's colour and shape; the two controls have their own.

    Methods that are not in `PLACES` get the places after it, in the order in which they are given.
    """
    marks = {"dense": (palette.ink, STAR), "random_channels": (palette.control, CROSS)}
    further = [method for method in methods if method not in marks and method not in PLACES]
    for place, method in enumerate((*PLACES, *further)):
        colour = palette.methods[place % len(palette.methods)]
        marks[method] = colour, SHAPES[place % len(SHAPES)]
    return {method: marks[method] for method in methods}
