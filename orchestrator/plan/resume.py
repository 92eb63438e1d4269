"""Whether a sweep may go on with what another sweep file has begun, and what has changed if not.

It may where it still makes every trial that the other one made, and searches alike. So more
trials, methods, seeds or values of a grid are no change that matters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from orchestrator.plan.studies import Study, studies
from orchestrator.sweep_file import SHARED, Search, Sweep
from orchestrator.sweep_file.grids_and_ranges import plain_text

NEVER_MATTERS = ("name", "resources", "search.trials", "search.hours", "confirm")
COMPARED_BY_STUDY = ("seeds", "methods", *SHARED)

_NOTHING = object()


def changes(old: Sweep, new: Sweep) -> list[str]:
    """What differs, a line each, between two sweeps that cannot be one; nothing if they can."""
    now = {study.name: study for study in studies(new)}
    same = all(
        study.name in now and replace(study, n_trials=now[study.name].n_trials) == now[study.name]
        for study in studies(old)
    )
    found = []
    for path, before, after in _differences(_plain(old), _plain(new)):
        text = f"{path} was {_text(before)}, and is {_text(after)}."
        if path == "search.trials" and same and _other_grids(old, now, new.search):
            found.append(f"{text} That makes other grids, of other points.")
        elif not _within(path, NEVER_MATTERS) and not (same and _within(path, COMPARED_BY_STUDY)):
            found.append(text)
    return found if same else found or ["Studies that ran have other names now."]


def _other_grids(old: Sweep, now: Mapping[str, Study], search: Search) -> bool:
    """Whether another number of tries gives a study other points."""
    if search.sampler != "grid":
        return False
    from orchestrator.search.samplers import (
        grid_points,  # imports Optuna, which only this needs here
    )

    return any(
        grid_points(study, study.n_trials) != grid_points(study, now[study.name].n_trials)
        for study in studies(old)
    )


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _plain(sweep: Sweep) -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load(sweep.dump())
    return plain


def _differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, value before, value after) of all that is not equal."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in {**before, **after}:
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(before.get(name, _NOTHING), after.get(name, _NOTHING), inner)
    elif before != after:
        yield path, before, after


def _text(value: Any) -> str:
    return "not there" if value is _NOTHING else plain_text(value)
