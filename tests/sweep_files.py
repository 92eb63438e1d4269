"""A sweep file for the tests, and what a tired user, a script or a cut-off copy makes of it."""

import copy
import datetime
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

SWEEP = """\
data: {name: digits, train_images: all, classes: all, validation_share: 0.1}
backbone: {name: conv, depth: {grid: [4, 6, 8]}, dropout: {grid: [0.0, 0.1]}, batch_norm: true}
training: {epochs: 20, batch_size: 256, learning_rate: 0.2, label_smoothing: 0.1}
fine_tuning: {epochs: 5, learning_rate: 0.02}
methods:
  dense: {}
  vanilla: {keep_ratio: {grid: [0.25, 0.5, 0.75]}}
  random_channels: {keep_ratio: {uniform: [0.2, 0.95]}}
  l1_filter: {keep_ratio: {uniform: [0.2, 0.95]}}
  magnitude: {threshold: {uniform: [0.25, 2.0]}, scope: global, rounds: 3}
seeds: [0]
objectives: {val_accuracy: maximize, multiplications: minimize}
search: {sampler: tpe, trials: 10, seed: 0}
resources: {cpus: 1, gpus: 0}
"""

MINIMAL = """\
data: {name: digits}
backbone: {name: conv}
training: {epochs: 3}
methods: {dense: {}}
"""

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    [],
    {},
    "",
    " ",
    "all",
    "1e-3",
    "../..",
    "conv",
    "\u2028é\u0000",
    "no.such:Thing",
    "json:loads",
    "x" * 5000,
    0,
    -1,
    3,
    0.5,
    1e308,
    float("nan"),
    float("-inf"),
    10**30,
    datetime.date(2024, 2, 30 - 1),
    b"\xff",
    [None],
    [[1], {"a": 2}],
    {"grid": []},
    {"grid": [1, 1]},
    {"grid": [0.5, None, "x", [2], {"depth": 4}]},
    {"grid": list(range(1, 400))},
    {"grid": {"grid": [1]}},
    {"uniform": [0.2, 0.9]},
    {"uniform": [2, 1]},
    {"uniform": 3},
    {"log_uniform": [0, 1]},
    {"int": [1, 3]},
    {"int": [0.5, 2]},
    {"choice": ["a", True]},
    {"choice": [[1], [2]]},
    {"uniform": [0, 1], "grid": [1]},
    {"teacher": {"depth": 8}},
    {"teacher": {"depth": {"grid": [6, 8]}, "name": None}, "weight": {"uniform": [0, 1]}},
    {1: 2, None: 3, False: {"x": {}}},
)


def mutated(text: str, seed: int) -> str:
    """`text`, a sweep file, with one to three changes drawn from `seed`."""
    draw = random.Random(seed)
    document = yaml.safe_load(text)
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        document = draw.choice(STRUCTURAL)(document, draw)
    changed = yaml.safe_dump(document, sort_keys=False, default_flow_style=draw.random() < 0.2)
    for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
        changed = draw.choice(TEXTUAL)(changed, draw)
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _pick(document: Any, draw: random.Random) -> tuple[Any, Any] | None:
    places = list(_places(document)) if isinstance(document, dict | list) else []
    return draw.choice(places) if places else None


def _replace(document: Any, draw: random.Random) -> Any:
    place = _pick(document, draw)
    odd = copy.deepcopy(draw.choice(ODD_VALUES))
    if place is None or draw.random() < 0.01:
        return odd
    place[0][place[1]] = odd
    return document


def _drop(document: Any, draw: random.Random) -> Any:
    place = _pick(document, draw)
    if place:
        del place[0][place[1]]
    return document


def _rename(document: Any, draw: random.Random) -> Any:
    """A key loses or doubles a letter, or becomes something that is no text."""
    place = _pick(document, draw)
    if place and isinstance(place[0], dict):
        container, key = place
        value, name = container.pop(key), str(key)
        cut = draw.randrange(len(name) + 1)
        names = (name[:cut] + name[cut + 1 :], name[:cut] + name[cut - 1 :], 7, None, "grid", "<<")
        container[draw.choice(names)] = value
    return document


def _move(document: Any, draw: random.Random) -> Any:
    """A value is copied to where another one belongs, as an alias in the text."""
    source, target = _pick(document, draw), _pick(document, draw)
    if source and target and isinstance(target[0], dict):
        value = source[0][source[1]]
        target[0][target[1]] = value if isinstance(value, str | int) else copy.deepcopy(value)
        if draw.random() < 0.2:
            target[0]["again"] = target[0][target[1]]
    return document


def _cut_line(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        del lines[draw.randrange(len(lines))]
    return "".join(lines)


def _double_line(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        line = draw.choice(lines)
        lines.insert(draw.randrange(len(lines)), line)
    return "".join(lines)


def _cut_off(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


def _insert(text: str, draw: random.Random) -> str:
    marks = ("\t", "{", "]", ":", "- ", "&a ", "*a", "!!python/name:os ", "---\n", "'", "%", "\x07")
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(marks) + text[at:]


STRUCTURAL: list[Callable[[Any, random.Random], Any]] = [_replace, _replace, _drop, _rename, _move]
TEXTUAL: list[Callable[[str, random.Random], str]] = [_cut_line, _double_line, _cut_off, _insert]
