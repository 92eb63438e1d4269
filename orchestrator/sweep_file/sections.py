"""Checks the options of a sweep against those who take them: data, backbones, training, methods."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.methods import METHODS, method_class
from orchestrator.sweep_file.conditions import misplaced_conditions
from orchestrator.sweep_file.grids_and_ranges import (
    Grid,
    Range,
    ranges_of,
    read_variables,
    variables,
)
from orchestrator.sweep_file.schema import SHARED, Sweep
from orchestrator.sweep_file.validation import (
    Check,
    OptionsError,
    check_model,
    plain_options,
    resolve,
)
from orchestrator.sweep_file.yaml_reader import Document, Key, dotted
from testbed.backbones import BACKBONES, check_backbone, check_weights_file
from testbed.data import DataOptions, check_data
from testbed.training import Training

MOST_TRIALS = 100_000
MOST_DATA_READ = 20  # each may take a second; the rest is read before the first trial starts

Options = dict[str, Any]  # of one section, grids and ranges in their places


def resolved_sweep(document: Document, name: str, data_root: Path | None) -> Sweep | None:
    """The sweep in a document, unless it has problems, which are added to the document's.

    Args:
        name: of the sweep, if it has no other.
        data_root: where data sets lie; None leaves the data sets themselves unchecked.
    """
    given = {section: value for section, value in document.data.items() if value is not None}
    given.setdefault("name", name)
    if isinstance(given.get("methods"), dict):
        given["methods"] = {k: {} if v is None else v for k, v in given["methods"].items()}
    n_seeds, tries, sweep = 1, 1, None
    try:
        sweep = Sweep.model_validate(check_model(Sweep, given, ""))
        n_seeds, tries = len(sweep.seeds), sweep.search.trials or 1
    except OptionsError as error:
        for key, message in error.problems:
            document.add_problem(key, message)
    given.setdefault("fine_tuning", {})
    sections = _resolved_sections(document, given, n_seeds, tries, data_root)
    return sweep and sweep.model_copy(update=sections)


def _resolved_sections(
    document: Document, given: Options, n_seeds: int, tries: int, data_root: Path | None
) -> dict[str, Options]:
    """The shared sections and `methods`, with defaults filled in; adds to the document's problems.

    Args:
        given: the document's; sections that are missing or no mappings are left out here.
        tries: of a study that has a range to search.
    """
    read = {
        section: _read(document, (section,), given[section])
        for section in SHARED
        if isinstance(given.get(section), dict)
    }
    methods = {
        method: _read(document, ("methods", method), options)
        for method, options in _mapping(given.get("methods")).items()
        if isinstance(options, dict)
    }
    checks: dict[str, Check] = {
        "data": _check_data_options,
        "backbone": resolved_backbone,
        "training": partial(check_model, Training, owner="training"),
        "fine_tuning": _fine_tuning_check(read.get("training", {})),
    }
    resolved = {
        section: _resolve(document, (section,), options, checks[section])
        for section, options in read.items()
    }
    if data_root is not None and "name" in read.get("data", {}):
        names_only = {"name": read["data"]["name"]}  # which can be checked in any case
        _check_data_sets(document, read["data"] if resolved["data"] else names_only, data_root)
    if data_root is not None and resolved.get("backbone"):
        _check_weights(document, read["backbone"])
    if all(resolved.get(section) for section in ("backbone", "training", "fine_tuning")):
        # What fine_tuning inherits from a grid or range varies with training, trial by trial.
        varying = {str(key[0]) for key, _ in variables(resolved["training"])}
        for name in varying - read["fine_tuning"].keys():
            resolved["fine_tuning"].pop(name, None)
        _check_teachers(document, read)
    budgets = list(_budgets(resolved))
    if (total := n_trials(read, methods, n_seeds, tries)) > MOST_TRIALS:
        document.add_problem(
            (),
            f"the grids, seeds and tries make {total:,} trials, more than the {MOST_TRIALS:,} of "
            "one sweep. Take values out of the grids, or make it several sweeps.",
        )
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
        searched = any(isinstance(v, Range) and len(v.drawn) > 1 for v in found)
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
    try:
        if name in BACKBONES:
            weights = {"weights": rest.pop("weights")} if "weights" in rest else {}
            rest = check_model(BACKBONES[name].options, rest, "backbone") | weights
        check_backbone(name, rest)
    except OptionsError:
        raise
    except ValueError as error:
        message = str(error)
        named = [option for option in rest if repr(option) in message]
        usual = "weights" if "weights" in rest and "weights" in message else "name"
        blamed = min(named, key=lambda option: message.index(repr(option)), default=usual)
        raise OptionsError([((blamed,), message)]) from error
    return {"name": name, **rest}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(document: Document, key: Key, options: Mapping[str, Any]) -> Options:
    """Options with their grids and ranges read; those that are malformed are reported, left out."""
    read = read_variables(options, document.refuse, key)
    if key != ("data",):
        return read
    for inner in ranges_of(read):
        path = (*key, *inner)
        document.refuse(path, f"{dotted(path)}: data are not searched. Give a value or a grid.")
    return {name: value for name, value in read.items() if not isinstance(value, Range)}


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


def _fine_tuning_check(training: Options) -> Check:
    """Checks fine_tuning, which inherits what it does not set from `training`."""
    inherited = next(plain_options(training))

    def check(options: Mapping[str, Any]) -> Options:
        try:
            return check_model(Training, {**inherited, **options}, "fine_tuning")
        except OptionsError as error:
            own = [(key, message) for key, message in error.problems if {*key[:1]} & {*options}]
            if own:
                raise OptionsError(own) from error
            return dict(options)  # training's own mistake, reported there

    return check


def _check_data_sets(document: Document, options: Options, root: Path) -> None:
    for plain in islice(plain_options(options), MOST_DATA_READ):
        try:
            check_data(DataOptions.model_validate(plain), root)
        except ValidationError:
            pass  # reported before
        except (ValueError, OSError) as error:
            named = re.match(r"data\.(\w+): ", str(error))
            document.add_problem(("data", named[1] if named else "name"), str(error))


def _check_weights(document: Document, options: Options) -> None:
    """Checks that the files of weights are there; whether they fit is found out with the images."""
    for plain in plain_options(options):
        try:
            check_weights_file(plain.pop("name"), plain)
        except ValueError as error:
            document.add_problem(("backbone", "weights"), f"backbone.{error}")


def _check_teachers(document: Document, read: Mapping[str, Options]) -> None:
    """Checks that a teacher's options, put over the backbone's, make a backbone."""

    def check(options: Mapping[str, Any]) -> Options:
        teacher = _mapping(_mapping(options.get("distillation")).get("teacher"))
        try:
            resolved_backbone({**options["backbone"], **teacher})
        except OptionsError as error:
            key = ("distillation", "teacher")
            raise OptionsError(
                [((*key, *k), f"teacher: {m}") for k, m in error.problems]
            ) from error
        return dict(options)

    for section in ("training", "fine_tuning"):
        if distillation := read[section].get("distillation"):
            both = {"backbone": read["backbone"], "distillation": distillation}
            for key, message in resolve(both, check)[1]:
                document.add_problem((section, *key), f"{section}.distillation.{message}")


def _budgets(resolved: Mapping[str, Options]) -> Iterator[Training]:
    """Every fine-tuning that the sweep's grids and ranges lead to, each option changed alone."""
    sections = {name: resolved.get(name, {}) for name in ("training", "fine_tuning")}
    if not all(sections.values()):
        return
    for plain in plain_options(sections):
        yield Training.model_validate({**plain["training"], **plain["fine_tuning"]})


def _resolve_method(
    document: Document, method: str, options: Options, budgets: Sequence[Training | None]
) -> Options:
    key = ("methods", method)
    try:
        model = method_class(method)
    except ValueError as error:
        document.add_problem(key, str(error))
        return {}
    resolved: Options = {}
    for budget in budgets or [None]:
        context = budget and {"fine_tuning": budget}
        check = partial(check_model, model, owner=dotted(key), context=context)
        resolved = _resolve(document, key, options, check)
    return resolved
