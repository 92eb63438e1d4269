"""Whether a sweep may resume what another sweep file has begun, and what has changed if not.

It may where it still makes every trial that the other one made, and searches alike. So more
trials, methods, seeds or values of a grid are no change that matters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from orchestrator.plan.grid_points import grid_points
from orchestrator.plan.plan import Plan
from orchestrator.plan.studies import Study
from orchestrator.sweep_file import SHARED
from orchestrator.sweep_file.grids_and_ranges import ABSENT, plain_text

NEVER_MATTERS = ("name", "resources", "search.trials", "search.hours", "confirm")
COMPARED_BY_STUDY = ("seeds", "methods", *SHARED)


def changes(old: Plan, new: Plan) -> list[str]:
    """What differs, a line each, between two sweeps that cannot be one; nothing if they can."""
    pairs = [(study, new.by_name.get(study.name)) for study in old.studies]
    same = all(now and replace(study, n_trials=now.n_trials) == now for study, now in pairs)
    found = []
    written = (yaml.safe_load(plan.sweep.dump()) for plan in (old, new))
    for path, before, after in _differences(*written):
        text = f"{path} was {_text(before)}, and is {_text(after)}."
        if path == "search.trials" and same and new.sweep.search.sampler == "grid":
            if any(now and _points(study) != _points(now) for study, now in pairs):
                found.append(f"{text} That makes other grids, of other points.")
        elif not _within(path, NEVER_MATTERS) and not (same and _within(path, COMPARED_BY_STUDY)):
            found.append(text)
    return found if same else found or ["Studies that ran have other names now."]


def _points(study: Study) -> list[dict[str, Any]]:
    return grid_points(study, study.n_trials)


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, value before, value after) of all that is not equal."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in {**before, **after}:
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(before.get(name, ABSENT), after.get(name, ABSENT), inner)
    elif before != after:
        yield path, before, after


def _text(value: Any) -> str:
    return "not there" if value is ABSENT else plain_text(value)
