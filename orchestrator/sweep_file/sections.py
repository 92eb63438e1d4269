"""Checks the options of a sweep against those who take them: data, backbones, training, methods."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.methods import METHODS, method_class
from orchestrator.sweep_file.conditions import misplaced_conditions
from orchestrator.sweep_file.grids_and_ranges import (
    MALFORMED,
    Grid,
    Range,
    fill,
    read_variables,
    variables,
)
from orchestrator.sweep_file.option_checks import (
    Check,
    OptionsError,
    check_model,
    combinations,
    resolve,
)
from orchestrator.sweep_file.schema import SHARED
from orchestrator.sweep_file.yaml_reader import Document, Key
from testbed.backbones import BACKBONES, check_backbone
from testbed.data import DataOptions, check_data
from testbed.training import Training

MOST_TRIALS = 100_000
MOST_DATA_READ = 20  # each may take a second; the rest is read before the first trial starts

Options = dict[str, Any]  # of one section, grids and ranges in their places


def resolve_sections(
    document: Document, n_seeds: int, tries: int, data_root: Path | None
) -> dict[str, Options]:
    """The shared sections and `methods`, with defaults filled in; adds to the document's problems.

    Args:
        document: sections that are missing or no mappings are left out here.
        tries: of a study that has a range to search.
        data_root: where data sets lie; None leaves the data sets themselves unchecked.
    """
    read = {
        section: _read(document, (section,), document.data[section])
        for section in SHARED
        if isinstance(document.data.get(section), dict)
    }
    methods = {
        method: _read(document, ("methods", method), options)
        for method, options in _mapping(document.data.get("methods")).items()
        if isinstance(options, dict)
    }
    resolved: dict[str, Options] = {}
    for section, check in (
        ("data", _check_data_options),
        ("backbone", resolved_backbone),
        ("training", _check_training),
        ("fine_tuning", _fine_tuning_check(read.get("training", {}))),
    ):
        if section in read:
            resolved[section] = _resolve(document, (section,), read[section], check)
    if data_root is not None and "name" in read.get("data", {}):
        names_only = {"name": read["data"]["name"]}  # which can be checked in any case
        _check_data_sets(document, read["data"] if resolved["data"] else names_only, data_root)
    if all(resolved.get(section) for section in ("backbone", "training", "fine_tuning")):
        _leave_inherited_variables(read, resolved)
        _check_teachers(document, read)
    budgets = list(_budgets(resolved))
    if n_trials(read, methods, n_seeds, tries) > MOST_TRIALS:
        document.add_problem((), _too_many(n_trials(read, methods, n_seeds, tries)))
        budgets = budgets[:1]
    resolved["methods"] = {
        method: _resolve_method(document, method, options, budgets)
        for method, options in methods.items()
    }
    sound = {name: options for name, options in resolved.items() if options}
    known = METHODS | {method: method for method in methods}
    for key, message in misplaced_conditions(sound, known):
        document.add_problem(key, message)
    return resolved


def n_trials(
    shared: Mapping[str, Options], methods: Mapping[str, Options], n_seeds: int, tries: int
) -> int:
    """How many trials a sweep makes; a study without ranges makes one."""
    common = [variable for _, variable in variables(shared)]
    total = 0
    for options in methods.values():
        found = common + [variable for _, variable in variables(options)]
        n_studies = prod(len(variable.values) for variable in found if isinstance(variable, Grid))
        searched = any(isinstance(v, Range) and len(v.choices) != 1 for v in found)
        total += n_studies * n_seeds * (tries if searched else 1)
    return total


def resolved_backbone(options: Mapping[str, Any]) -> Options:
    """A backbone's options, its name among them, with defaults filled in.

    Raises:
        OptionsError: if the name or an option is unknown or refused.
    """
    rest = {option: value for option, value in options.items() if option != "name"}
    name = options.get("name")
    if not isinstance(name, str):
        got = "none" if name is None else repr(name)
        raise OptionsError([(("name",), f"backbone.name: expected the name of one, got {got}.")])
    if name in BACKBONES:
        return {"name": name, **check_model(BACKBONES[name].options, rest, "backbone")}
    try:
        check_backbone(name, rest)
    except ValueError as error:
        message = str(error)
        named = [option for option in rest if repr(option) in message]
        blamed = min(named, key=lambda option: message.index(repr(option)), default="name")
        raise OptionsError([((blamed,), message)]) from error
    return dict(options)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(document: Document, key: Key, options: Mapping[str, Any]) -> Options:
    """Options with their grids and ranges read; those that are malformed are reported, left out."""
    problems: list[tuple[Key, str]] = []
    read = {name: read_variables(value, (*key, name), problems) for name, value in options.items()}
    if key == ("data",):
        for inner, variable in variables(read, key):
            if isinstance(variable, Range):
                message = "data are not searched. Give a value or a grid"
                problems.append((inner, f"{'.'.join(map(str, inner))}: {message}."))
        read = {name: v for name, v in read.items() if not isinstance(v, Range)}
    for problem_key, message in problems:
        document.add_problem(problem_key, message)
        document.unreadable.add(problem_key)
    return {name: value for name, value in read.items() if value is not MALFORMED}


def _resolve(document: Document, key: Key, options: Options, check: Check) -> Options:
    """Resolved options; none if they have a problem, which is added to the document's."""
    resolved, problems = resolve(options, check, key)
    for inner, message in problems:
        document.add_problem((*key, *inner), message)
    return {} if problems else resolved


def _check_data_options(options: Mapping[str, Any]) -> Options:
    classes = options.get("classes")
    if isinstance(classes, list):  # [3, 5] names two digits, though names are text
        names = [str(name) if type(name) is int else name for name in classes]
        options = {**options, "classes": names}
    return check_model(DataOptions, options, "data")


def _check_training(options: Mapping[str, Any]) -> Options:
    return check_model(Training, options, "training")


def _fine_tuning_check(training: Options) -> Check:
    """Checks fine_tuning, which inherits what it does not set from `training`."""
    first = {key: variable.values[0] for key, variable in variables(training)}
    inherited = fill(training, first)

    def check(options: Mapping[str, Any]) -> Options:
        try:
            return check_model(Training, {**inherited, **options}, "fine_tuning")
        except OptionsError as error:
            own = [
                problem for problem in error.problems if problem[0][:1] in {(o,) for o in options}
            ]
            if own:
                raise OptionsError(own) from error
            return dict(options)  # training's own mistake, reported there

    return check


def _leave_inherited_variables(read: Mapping[str, Options], resolved: dict[str, Options]) -> None:
    """Takes out of fine_tuning what it inherits from a grid or range: that varies with training."""
    varying = {key[0] for key, _ in variables(resolved["training"])}
    resolved["fine_tuning"] = {
        name: value
        for name, value in resolved["fine_tuning"].items()
        if name in read.get("fine_tuning", {}) or name not in varying
    }


def _check_data_sets(document: Document, options: Options, root: Path) -> None:
    found = dict(variables(options))
    for picks in islice(combinations(found, most=1), MOST_DATA_READ):
        plain = fill(options, {key: found[key].values[i] for key, i in picks.items()})
        try:
            check_data(DataOptions.model_validate(plain), root)
        except ValidationError:
            pass  # reported before
        except (ValueError, OSError) as error:
            named = re.match(r"data\.(\w+): ", str(error))
            document.add_problem(("data", named[1] if named else "name"), str(error))


def _check_teachers(document: Document, read: Mapping[str, Options]) -> None:
    """Checks that a teacher's options, put over the backbone's, make a backbone."""

    def check(options: Mapping[str, Any]) -> Options:
        teacher = _mapping(_mapping(options.get("distillation")).get("teacher"))
        try:
            resolved_backbone({**options["backbone"], **teacher})
        except OptionsError as error:
            problems = [
                (("distillation", "teacher", *k), f"teacher: {m}") for k, m in error.problems
            ]
            raise OptionsError(problems) from error
        return dict(options)

    for section in ("training", "fine_tuning"):
        distillation = read[section].get("distillation")
        if distillation is not None:
            _, problems = resolve(
                {"backbone": read["backbone"], "distillation": distillation}, check
            )
            for key, message in problems:
                document.add_problem((section, *key), f"{section}.distillation.{message}")


def _budgets(resolved: Mapping[str, Options]) -> Iterator[Training]:
    """Every fine-tuning that the sweep's grids and ranges lead to, each option changed alone."""
    sections = {name: resolved.get(name, {}) for name in ("training", "fine_tuning")}
    if not all(sections.values()):
        return
    found = dict(variables(sections))
    for picks in combinations(found, most=1):
        plain = fill(sections, {key: found[key].values[i] for key, i in picks.items()})
        yield Training.model_validate({**plain["training"], **plain["fine_tuning"]})


def _resolve_method(
    document: Document, method: str, options: Options, budgets: list[Training]
) -> Options:
    key = ("methods", method)
    try:
        model = method_class(method)
    except ValueError as error:
        document.add_problem(key, str(error))
        return {}
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        document.add_problem(key, f"expected a pydantic model at {method}, got {model!r}.")
        return {}
    contexts: list[Any] = [{"fine_tuning": budget} for budget in budgets]
    resolved: Options = {}
    for context in contexts or [None]:

        def check(values: Mapping[str, Any], context: Any = context) -> Options:
            return check_model(model, values, ".".join(key), context)

        resolved = _resolve(document, key, options, check)
    return resolved


def _too_many(total: int) -> str:
    return (
        f"the grids, seeds and tries make {total:,} trials, more than the {MOST_TRIALS:,} of one "
        "sweep. Take values out of the grids, or make it several sweeps."
    )
