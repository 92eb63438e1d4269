"""A colour and a mark for each method, for good: the same in every report and in MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """The colours of a page and its charts, apart also for the colour-blind."""

    surface: str
    panel: str
    ink: str
    muted: str
    grid: str
    control: str
    methods: tuple[str, ...]


# After Okabe and Ito 2008, darkened or lightened until each stands out from its surface.
LIGHT = Palette(
    surface="#ffffff",
    panel="#f6f8fa",
    ink="#1b1f24",
    muted="#5b6570",
    grid="#e3e7eb",
    control="#87919c",
    methods=(
        *("#0072b2", "#d55e00", "#009370", "#b5489a", "#b98500", "#3a9bd0", "#7d4b22"),
        *("#5d4fc4", "#6f7f10", "#c2185b", "#007c89", "#9c27b0"),
    ),
)
DARK = Palette(
    surface="#14171a",
    panel="#1c2126",
    ink="#eceff2",
    muted="#a3adb8",
    grid="#2d343b",
    control="#8b96a2",
    methods=(
        *("#5aaee8", "#ff8f4f", "#3ccb9d", "#e58fd0", "#edb83f", "#93d8f8", "#c9a07c"),
        *("#a99cff", "#b9cc4a", "#ff7fab", "#4fd8cf", "#d98cf0"),
    ),
)
CSS = Palette(  # the variables of an HTML page, which serve light, dark and print
    surface="var(--surface)",
    panel="var(--panel)",
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
    "M0,-1.2L1.04,-.6V.6L0,1.2 -1.04,.6V-.6Z",  # hexagon
    "M-1,-1L0,-.45 1,-1 .45,0 1,1 0,.45 -1,1 -.45,0Z",  # four-pointed star
)

# A method's colour and shape, by their places in a palette and in SHAPES. No two have both alike,
# and those that stand side by side in a sweep have other colours.
PLACES = {
    "vanilla": (0, 0),
    "rnp": (1, 1),
    "l1_filter": (2, 2),
    "magnitude": (3, 3),
    "thinet": (4, 4),
    "policy_gradient": (5, 5),
    "static_prefix": (6, 6),
    "amc": (7, 7),
    "pcas": (8, 8),
    "class_statistics": (9, 0),
    "fbs": (10, 2),
    "feature_maps": (11, 3),
    "network_routing": (4, 8),
    "static_blocks": (3, 6),
    "cascade": (7, 0),
    "cascade_random": (8, 4),
    "second_look": (9, 5),
    "rnp_groups": (11, 7),
    "str": (5, 0),
    "autoprune": (10, 5),
    "joint_sparsity": (2, 6),
    "bit_pruning": (6, 1),
}
CONTROLS = ("dense", "random_channels")  # which have a colour and a shape of their own
_RARER_FIRST = (10, 11, 9, 8, 7, 5, 4, 6, 3, 2, 1, 0)  # colours
_OPEN = {
    colour: [shape for shape in range(len(SHAPES)) if (colour, shape) not in PLACES.values()]
    for colour in _RARER_FIRST
}
FREE = tuple(  # colours and shapes for further methods; every colour once before one comes again
    (colour, shapes[turn])
    for turn in range(len(SHAPES))
    for colour, shapes in _OPEN.items()
    if turn < len(shapes)
)


def lighter(colour: str) -> str:
    """A colour half way to white: of confirmations, beside the search's trials."""
    return "#" + bytes((value + 255) // 2 for value in bytes.fromhex(colour[1:])).hex()


def method_marks(methods: Sequence[str], palette: Palette) -> dict[str, tuple[str, str]]:
    """Each method's colour and shape; the two controls have their own.

    Methods without a place get the `FREE` ones, in the order in which they are given.
    """
    further = [method for method in methods if method not in PLACES and method not in CONTROLS]
    places = PLACES | {method: FREE[n % len(FREE)] for n, method in enumerate(further)}
    marks = {method: (palette.methods[c], SHAPES[s]) for method, (c, s) in places.items()}
    marks |= {"dense": (palette.ink, STAR), "random_channels": (palette.control, CROSS)}
    return {method: marks[method] for method in methods}
