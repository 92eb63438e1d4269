"""The points of the grid sampler: the smallest grid over a study's ranges that has enough."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from orchestrator.plan.studies import Study
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.grids_and_ranges import Range


def n_tries(study: Study, search: Search) -> float:
    """How many trials a study gets: what the sweep asks for, but no point of a grid twice.

    Infinite where the hours alone are the bound.
    """
    if search.sampler != "grid":
        return study.n_trials
    return min(study.n_trials, len(grid_points(study, study.n_trials)))


def grid_points(study: Study, n_tries: float) -> list[dict[str, Any]]:
    """Every point of the smallest grid of `n_tries` points, or of the largest there is.

    Each range's values lie at equal distances, its two ends included. Points that differ in options
    that are not searched there are one.
    """
    conditional = any(r.when for r in study.ranges.values())

    def searched(point: Mapping[str, Any]) -> dict[str, Any]:
        return study.values(lambda name, _: point[name])

    for sizes in grid_sizes(study.ranges, n_tries):
        spread = [_spread(study.ranges[name], size) for name, size in sizes.items()]
        points = [dict(zip(sizes, values, strict=True)) for values in product(*spread)]
        if conditional:
            points = list({repr(point): point for point in map(searched, points)}.values())
        if len(points) >= n_tries:
            break
    return points


def grid_sizes(ranges: Mapping[str, Range], n_tries: float) -> Iterator[dict[str, int]]:
    """How many points each range has in grids that grow, from one that might have `n_tries` points.

    A choice has all its values. One more point goes to a range that has the fewest, the first of
    equals; the last grid is the one where no range has more values to give.
    """
    sizes = {name: len(r.drawn) if r.kind == "choice" else 1 for name, r in ranges.items()}
    while True:
        if math.prod(sizes.values()) >= n_tries:
            yield sizes
        growing = [name for name in ranges if sizes[name] < _n_values(ranges[name])]
        if not growing:
            break
        sizes[min(growing, key=sizes.__getitem__)] += 1
    yield sizes


def value_at(r: Range, share: float) -> Any:
    """The value that lies `share` (0 <= share < 1) of the way through a range."""
    if r.kind == "choice":
        return r.drawn[int(share * len(r.drawn))]
    low, high = r.drawn
    match r.kind:
        case "int":
            return int(low) + int(share * (high - low + 1))
        case "log_uniform":
            return low * (high / low) ** share
        case "uniform":
            return low + (high - low) * share


def _spread(r: Range, size: int) -> list[Any]:
    """`size` values at equal distances (log_uniform: at equal ratios); one alone is the middle."""
    if r.kind == "choice":
        return list(r.drawn)
    if size == 1:
        return [value_at(r, 0.5)]
    low, high = r.drawn
    if r.kind == "log_uniform":
        return np.geomspace(low, high, size).tolist()
    values = np.linspace(low, high, size).tolist()
    return list(map(round, values)) if r.kind == "int" else values


def _n_values(r: Range) -> float:
    """How many different values a range has."""
    if r.kind == "choice":
        return len(r.drawn)
    return r.drawn[1] - r.drawn[0] + 1 if r.kind == "int" else math.inf
