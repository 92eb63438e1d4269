"""Checks options against the pydantic models that take them, and says what is wrong in our words.

Options are checked as JSON in pydantic's strict mode: a list may stand for a tuple, but text or
`true` never for a number.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.sweep_file.conditions import Problem
from orchestrator.sweep_file.grids_and_ranges import (
    ABSENT,
    Condition,
    Grid,
    Range,
    Variable,
    fill,
    lookup,
    variables,
)
from orchestrator.sweep_file.messages import problems_in_our_words, show
from orchestrator.sweep_file.yaml_reader import Key

# Gives options with their defaults filled in, or raises OptionsError.
Check = Callable[[Mapping[str, Any]], dict[str, Any]]
Picks = dict[Key, int]  # which of its values a grid or range has

MOST_COMBINATIONS = 200  # of values in one section; with more, values are checked one at a time


class OptionsError(ValueError):
    """What is wrong with some options: a message for each mistake, with its key."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = list(problems)


def check_model(
    model: type[BaseModel], options: Mapping[str, Any], owner: str, context: Any = None
) -> dict[str, Any]:
    """`options` as `model` understands them, with its defaults, as plain JSON values.

    Args:
        owner: what the options belong to, for the messages: "training".

    Raises:
        OptionsError: if the model refuses them.
    """
    try:
        valid = model.model_validate_json(json.dumps(options), strict=True, context=context)
    except ValidationError as error:
        raise OptionsError(problems_in_our_words(error.errors(), model, options, owner)) from error
    return {**options, **valid.model_dump(mode="json", by_alias=True)}


def plain_options(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options with the first value of each grid and range, then with each other value alone."""
    found = dict(variables(options))
    for picks in _combinations(found, most=1):
        yield _picked(options, found, picks)


def resolve(
    options: Mapping[str, Any], check: Check, section: Key = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Checks every value of the grids and both ends of the ranges in `options`.

    Args:
        section: where the options lie; of ranges with conditions on others of them only what can
            come together is checked.

    Returns:
        The options with defaults filled in, grids and ranges in their places; and what is wrong.
    """
    found = dict(variables(options))
    problems: dict[Problem, None] = {}
    taken: dict[tuple[Key, int], Any] = {}  # values of the grids as the model takes them
    resolved: dict[str, Any] = {}
    for picks in _combinations(found, MOST_COMBINATIONS):
        _follow_conditions(picks, options, found, section)
        try:
            plain = check(_picked(options, found, picks))
        except OptionsError as error:
            for key, message in error.problems:
                problems[_as_written(key, found, picks), message] = None
            continue
        resolved = resolved or plain
        for key, index in picks.items():
            taken[key, index] = lookup(plain, key)
    if not problems:
        resolved = fill(resolved, {})
        for key, variable in found.items():
            if isinstance(variable, Grid):
                values = [taken[key, index] for index in range(len(variable.values))]
                problems |= dict.fromkeys(_repeated(key, values))
                variable = Grid(tuple(values))
            _put(resolved, key, variable)  # also where the option was left out
    return resolved, list(problems)


def _picked(
    options: Mapping[str, Any], found: Mapping[Key, Variable], picks: Picks
) -> dict[str, Any]:
    return fill(options, {key: found[key].values[index] for key, index in picks.items()})


def _combinations(found: Mapping[Key, Variable], most: int) -> Iterator[Picks]:
    """Picks of a value for each variable: all, or, if more than `most`, each changed alone."""
    ranges = [range(len(variable.values)) for variable in found.values()]
    if prod(map(len, ranges)) <= most:
        for indices in product(*ranges):
            yield dict(zip(found, indices, strict=True))
        return
    first = dict.fromkeys(found, 0)
    yield dict(first)
    for key, variable in found.items():
        for index in range(1, len(variable.values)):
            yield {**first, key: index}


def _follow_conditions(
    picks: Picks, options: Mapping[str, Any], found: Mapping[Key, Variable], section: Key
) -> None:
    """Changes the picks of ranges whose conditions they decide: searched or not as these say."""

    def met(condition: Condition) -> bool | None:
        """None if it is on something else than these options."""
        key = condition.option[len(section) :]
        if not section or condition.option[: len(section)] != section:
            return None
        value = found[key].values[picks[key]] if key in found else lookup(options, key)
        # Where it stands at its default, the check will say so.
        return None if value is ABSENT and key not in found else value in condition.values

    for _ in found:  # conditions on conditional ranges settle one after another
        for key, variable in found.items():
            if isinstance(variable, Range) and variable.when:
                said = [met(condition) for condition in variable.when]
                unsearched = len(variable.drawn)
                if False in said:
                    picks[key] = unsearched
                elif None not in said and picks[key] == unsearched:
                    picks[key] = 0


def _put(options: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        options = options.setdefault(str(name), {})
    options[str(key[-1])] = value


def _repeated(key: Key, values: Sequence[Any]) -> Iterator[Problem]:
    """What is wrong with a grid that has a value twice."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        text = json.dumps(value, sort_keys=True)
        if text in seen:
            message = f"the grid of {key[-1]} has {show(value)} twice. Keep one."
            yield (*key, "grid", index), message
        seen.add(text)


def _as_written(key: Key, found: Mapping[Key, Variable], picks: Picks) -> Key:
    """The key of a value inside a grid or range, as the file has it: (..., "grid", 2)."""
    for variable_key, variable in found.items():
        if key[: len(variable_key)] == variable_key:
            index, rest = picks[variable_key], key[len(variable_key) :]
            if isinstance(variable, Range) and index == len(variable.drawn):
                return (*variable_key, "otherwise", *rest)
            return (*variable_key, next(iter(variable.as_written())), index, *rest)
    return key
