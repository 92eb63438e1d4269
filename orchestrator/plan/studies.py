"""The studies of a sweep: the tries of one method at one point of the grids with one seed."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from orchestrator.plan.trial import Trial
from orchestrator.sweep_file import Sweep
from orchestrator.sweep_file.conditions import decided, settle
from orchestrator.sweep_file.grids_and_ranges import (
    ABSENT,
    Grid,
    Range,
    fill,
    plain_text,
    ranges_of,
    variables,
)
from orchestrator.sweep_file.yaml_reader import Key, dotted

LONGEST_STUDY_NAME = 90  # a trial's number still has to follow, in a file's name


@dataclass(frozen=True)
class Study:
    """The tries of one method in one cell with one seed."""

    name: str  # unlike any other study's, and fit for a file's name
    cell: str
    method: str
    seed: int
    n_trials: float  # a whole number, or infinite where the hours alone are the bound
    options: dict[str, Any]  # by section; ranges stand in their places, grids are gone

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """What is searched, by dotted path: "methods.l1_filter.keep_ratio"."""
        return {dotted(key): found for key, found in ranges_of(self.options).items()}

    def trial_id(self, number: int) -> str:
        return f"{self.name}-{number:03d}"

    def values(self, suggest: Callable[[str, Range], Any]) -> dict[str, Any]:
        """A suggested value for each range that these values have searched, by dotted path."""
        return settle(ranges_of(self.options), suggest)[1]

    def trial(self, number: int, values: Mapping[str, Any]) -> Trial:
        """Trial `number` of this study, counted from 0.

        Args:
            values: one for each of `ranges` that is searched beside them.

        Raises:
            ValueError: if a value is missing or too many.
        """
        by_key, searched = settle(ranges_of(self.options), lambda path, _: values.get(path, ABSENT))
        if values.keys() != searched.keys():
            raise ValueError(
                f"study {self.name!r}: expected values for {', '.join(searched) or 'nothing'}, "
                f"got {', '.join(values) or 'none'}."
            )
        plain = fill(self.options, by_key)
        backbone = dict(plain["backbone"])
        return Trial(
            trial_id=self.trial_id(number),
            study=self.name,
            cell=self.cell,
            method=self.method,
            options=plain["methods"][self.method],
            data=plain["data"],
            backbone=backbone.pop("name"),
            backbone_options=backbone,
            training=plain["training"],
            fine_tuning={**plain["training"], **plain["fine_tuning"]},
            seed=self.seed,
        )


def studies(sweep: Sweep) -> list[Study]:
    """All studies, in the order they run: by cell, seed, method, and the method's own grid."""
    found: list[Study] = []
    names: set[str] = set()
    for options, cell in cells(sweep.shared):
        cell_name = " ".join(f"{label}={value}" for label, value in cell.items()) or "all"
        for seed, (method, given) in product(sweep.seeds, sweep.methods.items()):
            for own, labels in cells({"methods": {method: given}}, taken=cell):
                sections = decided({**options, **own}, method)
                name = _study_name(method, {**cell, **labels}, seed, names)
                names.add(name.lower())  # some file systems do not tell A from a
                n_trials = (sweep.search.trials or math.inf) if any(variables(sections)) else 1
                found.append(Study(name, cell_name, method, seed, n_trials, sections))
    return found


def cells(
    sections: Mapping[str, Any], taken: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Every point of the grids in `sections`, the last grid changing fastest.

    Args:
        taken: labels that are in use already.

    Yields:
        The sections without grids, and what was picked: {"depth": "4"}.
    """
    grids = {key: found.values for key, found in variables(sections) if isinstance(found, Grid)}
    labels = _labels(list(grids), taken or {})
    for values in product(*grids.values()):
        picked = dict(zip(grids, values, strict=True))
        texts = map(plain_text, values)
        yield fill(sections, picked), dict(zip(labels, texts, strict=True))


def _labels(keys: Sequence[Key], taken: Mapping[str, str]) -> list[str]:
    """A short name for each option, the whole path where the short one would be ambiguous."""
    short = [str(key[-2] if key[-1] == "name" else key[-1]) for key in keys]
    count = Counter([*short, *taken])
    paths = (dotted(key).removeprefix("methods.") for key in keys)
    return [name if count[name] == 1 else path for name, path in zip(short, paths, strict=True)]


def _study_name(method: str, labels: Mapping[str, str], seed: int, names: set[str]) -> str:
    """`l1_filter-depth4-dropout0.1-s0`; with a hash where it would be too long or repeated."""
    options = [f"{label}{value}" for label, value in labels.items()]
    parts = [method.rpartition(":")[2], *options, f"s{seed}"]
    name = "-".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part).strip("_") for part in parts)
    if len(name) <= LONGEST_STUDY_NAME and name.lower() not in names:
        return name
    text = json.dumps([method, labels, seed])
    return f"{name[: LONGEST_STUDY_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
