"""What a sweep consists of: studies, their trials, and the dense networks these start from."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.sweep_file import SHARED, Sweep
from orchestrator.sweep_file.conditions import decided, settle
from orchestrator.sweep_file.grids_and_ranges import (
    ABSENT,
    Grid,
    Range,
    fill,
    plain_text,
    variables,
)
from orchestrator.sweep_file.sections import resolved_backbone
from orchestrator.sweep_file.yaml_reader import Key
from testbed.data import DataOptions
from testbed.training import Training

LONGEST_STUDY_NAME = 90  # a trial's number still has to follow, in a file's name


class Trial(BaseModel):
    """All that one trial is told: everything is a plain value, and JSON holds it whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial_id: str
    study: str
    cell: str
    method: str
    options: dict[str, Any]  # of the method
    data: DataOptions
    backbone: str
    backbone_options: dict[str, Any]
    training: Training
    fine_tuning: Training
    seed: int
    phase: Literal["search", "confirmation"] = "search"
    confirms: str = ""  # the trial_id that a confirmation runs again

    def option(self, path: str) -> Any:
        """The value at a dotted path outside the method: "training.learning_rate"."""
        sections = self.model_dump(mode="json")
        value: Any = {**sections, "backbone": {**self.backbone_options, "name": self.backbone}}
        for name in path.split("."):
            # Null in place of a mapping, or an option of a backbone that is left out.
            value = None if value is None else value.get(name)
        return value


@dataclass(frozen=True)
class Study:
    """The tries of one method in one cell with one seed."""

    name: str  # unlike any other study's, and fit for a file's name
    cell: str
    method: str
    seed: int
    n_trials: float  # a whole number, or infinite where the hours alone are the bound
    options: dict[str, Any]  # by section; ranges stand in their places, grids are gone

    @property
    def ranges(self) -> dict[str, Range]:
        """What is searched, by dotted path: "methods.l1_filter.keep_ratio"."""
        return {".".join(map(str, key)): found for key, found in self._ranges().items()}

    def trial_id(self, number: int) -> str:
        return f"{self.name}-{number:03d}"

    def values(self, suggest: Callable[[str, Range], Any]) -> dict[str, Any]:
        """A suggested value for each range that these values have searched, by dotted path."""
        suggested: dict[str, Any] = {}

        def keep(key: Key, found: Range) -> Any:
            path = ".".join(map(str, key))
            suggested[path] = suggest(path, found)
            return suggested[path]

        settle(self._ranges(), keep)
        return suggested

    def trial(self, number: int, values: Mapping[str, Any]) -> Trial:
        """Trial `number` of this study, counted from 0.

        Args:
            values: one for each of `ranges` that is searched beside them.

        Raises:
            ValueError: if a value is missing or too many.
        """
        searched = self.values(lambda path, found: values.get(path, ABSENT))
        if values.keys() != searched.keys():
            raise ValueError(
                f"study {self.name!r}: expected values for {', '.join(searched) or 'nothing'}, "
                f"got {', '.join(values) or 'none'}."
            )
        by_key = settle(self._ranges(), lambda key, _: values[".".join(map(str, key))])
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

    def _ranges(self) -> dict[Key, Range]:
        return {key: found for key, found in variables(self.options) if isinstance(found, Range)}


def studies(sweep: Sweep) -> list[Study]:
    """All studies, in the order they run: by cell, seed, method, and the method's own grid."""
    shared = {section: getattr(sweep, section) for section in SHARED}
    found: list[Study] = []
    names: set[str] = set()
    for cell in _cells(shared):
        for seed in sweep.seeds:
            for method, options in sweep.methods.items():
                for own in _cells({"methods": {method: options}}, taken=cell.labels):
                    labels = {**cell.labels, **own.labels}
                    sections = decided({**cell.options, **own.options}, method)
                    searched = any(True for _ in variables(sections))
                    name = _study_name(method, labels, seed, names)
                    names.add(name.lower())  # some file systems do not tell A from a
                    found.append(
                        Study(
                            name=name,
                            cell=cell.name,
                            method=method,
                            seed=seed,
                            n_trials=(sweep.search.trials or math.inf) if searched else 1,
                            options=sections,
                        )
                    )
    return found


def plain_trials(sweep: Sweep) -> list[Trial]:
    """The trials of a sweep that has values and grids only, for a machine without Optuna.

    Raises:
        ValueError: if an option is a range: names all that are.
    """
    planned = studies(sweep)
    ranges = dict.fromkeys(
        f"{name}: {found}" for study in planned for name, found in study.ranges.items()
    )
    if ranges:
        raise ValueError(
            "expected values and grids only, since nothing searches here; these are ranges: "
            f"{'; '.join(ranges)}. Give each a value or a grid, in the file or with --set."
        )
    return [study.trial(0, {}) for study in planned]


def confirmations(trials: Sequence[Trial], fresh_seeds: Sequence[int]) -> list[Trial]:
    """These trials again with each of the fresh seeds; settings that differ in the seed alone once.

    Args:
        trials: of the search, the one that speaks for its settings before others like it.
    """
    once: dict[str, Trial] = {}
    for trial in trials:
        once.setdefault(trial.model_dump_json(exclude={"trial_id", "study", "seed"}), trial)
    return [confirmation(trial, seed) for seed in fresh_seeds for trial in once.values()]


def confirmation(trial: Trial, seed: int) -> Trial:
    """A trial of the search again, with a fresh seed."""
    again = {"trial_id": f"{trial.trial_id}-c{seed}", "seed": seed}
    again |= {"phase": "confirmation", "confirms": trial.trial_id}
    return trial.model_copy(update=again)


class DenseNetwork(BaseModel):
    """All that determines a trained dense network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataOptions
    backbone: str
    backbone_options: dict[str, Any]
    training: Training  # without distillation where the network would be its own teacher
    seed: int
    teacher: "DenseNetwork | None" = None

    def spec(self, data_fingerprint: str) -> dict[str, Any]:
        """What a `DenseStore` keeps it under. The fingerprint says all of the data that matters."""
        return {
            **self.model_dump(mode="json", exclude={"data", "teacher"}),
            "data": data_fingerprint,
            "teacher": self.teacher and self.teacher.spec(data_fingerprint),
        }


def dense_network(trial: Trial) -> DenseNetwork:
    """The dense network that a trial starts from."""
    options = {"name": trial.backbone, **trial.backbone_options}
    return _dense_network(trial.data, options, trial.training, trial.seed)


def fine_tuning_teacher(trial: Trial) -> DenseNetwork | None:
    """The dense network that a trial's fine-tuning distils from, if it distils."""
    if trial.fine_tuning.distillation is None:
        return None
    options = {"name": trial.backbone, **trial.backbone_options}
    options |= trial.fine_tuning.distillation.teacher
    return _dense_network(trial.data, options, trial.training, trial.seed)


def networks_of(trial: Trial) -> list[DenseNetwork]:
    """The dense networks that must be there for a trial, teachers before their students."""
    needed = [*_with_teachers(dense_network(trial))]
    if teacher := fine_tuning_teacher(trial):
        needed += _with_teachers(teacher)
    return needed


def dense_networks(sweep: Sweep) -> list[DenseNetwork]:
    """The dense networks that are known before the search, each once, teachers before students.

    Those of the confirmation's seeds too: they are as many again, which no core need wait for.

    What depends on a range is not among them: it is known only when the trial is.
    """
    found: dict[str, DenseNetwork] = {}
    for cell in _cells({section: getattr(sweep, section) for section in SHARED}):
        sections = decided(cell.options)
        if any(
            True for name in ("data", "backbone", "training") for _ in variables(sections[name])
        ):
            continue
        data = DataOptions.model_validate(sections["data"])
        training = Training.model_validate(sections["training"])
        backbones = [sections["backbone"]]
        distillation = {**sections["training"], **sections["fine_tuning"]}.get("distillation")
        # A range, that hangs on the method, is known only with a trial.
        if isinstance(distillation, Mapping) and not any(
            True for _ in variables(distillation["teacher"])
        ):
            backbones.append({**sections["backbone"], **distillation["teacher"]})
        for seed in (*sweep.seeds, *sweep.fresh_seeds):
            for options in backbones:
                for network in _with_teachers(_dense_network(data, options, training, seed)):
                    found.setdefault(network.model_dump_json(), network)
    return list(found.values())


def _with_teachers(network: DenseNetwork) -> Iterator[DenseNetwork]:
    if network.teacher:
        yield from _with_teachers(network.teacher)
    yield network


def _dense_network(
    data: DataOptions, backbone: Mapping[str, Any], training: Training, seed: int
) -> DenseNetwork:
    options = resolved_backbone(backbone)
    teacher = None
    if training.distillation:
        taught_by = resolved_backbone({**options, **training.distillation.teacher})
        if taught_by == options:
            training = training.model_copy(update={"distillation": None})
        else:
            teacher = _dense_network(data, taught_by, training, seed)
    return DenseNetwork(
        data=data,
        backbone=options.pop("name"),
        backbone_options=options,
        training=training,
        seed=seed,
        teacher=teacher,
    )


@dataclass(frozen=True)
class _Cell:
    """One point of the grids in some sections: the sections without grids, and what was picked."""

    options: dict[str, Any]
    labels: dict[str, str]  # {"depth": "4"}

    @property
    def name(self) -> str:
        return " ".join(f"{label}={value}" for label, value in self.labels.items()) or "all"


def _cells(sections: Mapping[str, Any], taken: Mapping[str, str] | None = None) -> Iterator[_Cell]:
    """Every combination of the grids in `sections`, the last grid changing fastest.

    Args:
        taken: labels that are in use already.
    """
    grids = {key: found.values for key, found in variables(sections) if isinstance(found, Grid)}
    labels = _labels(list(grids), taken or {})
    for values in product(*grids.values()):
        picked = dict(zip(grids, values, strict=True))
        texts = map(plain_text, values)
        yield _Cell(fill(sections, picked), dict(zip(labels, texts, strict=True)))


def _labels(keys: Sequence[Key], taken: Mapping[str, str]) -> list[str]:
    """A short name for each option, the whole path where the short one would be ambiguous."""
    short = [str(key[-2] if key[-1] == "name" else key[-1]) for key in keys]
    count = Counter([*short, *taken])
    paths = (".".join(map(str, key)).removeprefix("methods.") for key in keys)
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
