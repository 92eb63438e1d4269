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

from orchestrator.sweep_file.grids_and_ranges import (
    ABSENT,
    Condition,
    Grid,
    Range,
    Variable,
    fill,
    variables,
)
from orchestrator.sweep_file.messages import problems_in_our_words, show
from orchestrator.sweep_file.yaml_reader import Key

Problem = tuple[Key, str]
# Gives options with their defaults filled in, or raises OptionsError.
Check = Callable[[Mapping[str, Any]], dict[str, Any]]

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
    taken: dict[Key, dict[int, Any]] = {key: {} for key in found}  # values as the model takes them
    resolved: dict[str, Any] = {}
    for picks in combinations(found):
        picks = _possible(options, found, picks, section)
        try:
            plain = check(fill(options, {key: found[key].values[i] for key, i in picks.items()}))
        except OptionsError as error:
            for key, message in error.problems:
                problems[_as_written(key, found, picks), message] = None
            continue
        resolved = resolved or plain
        for key, index in picks.items():
            if found[key].values[index] is not ABSENT:
                taken[key][index] = _lookup(plain, key)
    if not problems:
        for key, variable in found.items():
            problems |= dict.fromkeys(_repeated(key, variable, taken[key]))
            if isinstance(variable, Grid):
                found[key] = Grid(tuple(taken[key][i] for i in sorted(taken[key])))
        resolved = _with_variables(resolved, found)
    return resolved, list(problems)


def _possible(
    options: Mapping[str, Any], found: Mapping[Key, Variable], picks: dict[Key, int], section: Key
) -> dict[Key, int]:
    """The picks, but for ranges whose conditions they decide: searched or not as these say."""
    picks = dict(picks)
    for _ in found:  # conditions on conditional ranges settle one after another
        for key, variable in found.items():
            if not isinstance(variable, Range) or not variable.when:
                continue
            met = [_met(condition, options, found, picks, section) for condition in variable.when]
            unsearched = len(variable.drawn)
            if False in met:
                picks[key] = unsearched
            elif None not in met and picks[key] == unsearched:
                picks[key] = 0
    return picks


def _met(
    condition: Condition,
    options: Mapping[str, Any],
    found: Mapping[Key, Variable],
    picks: Mapping[Key, int],
    section: Key,
) -> bool | None:
    """Whether the picks meet a condition; None if it is on something else."""
    key = condition.option[len(section) :]
    if not section or condition.option[: len(section)] != section:
        return None
    if key in found:
        return found[key].values[picks[key]] in condition.values
    try:
        return _lookup(options, key) in condition.values
    except (KeyError, TypeError):  # its default, which the check will say
        return None


def _with_variables(options: Mapping[str, Any], found: Mapping[Key, Variable]) -> dict[str, Any]:
    """`options` with grids and ranges at their keys, also where the option was left out."""
    result = fill(options, {})
    for key, variable in found.items():
        inner = result
        for name in key[:-1]:
            inner = inner.setdefault(str(name), {})
        inner[str(key[-1])] = variable
    return result


def combinations(
    found: Mapping[Key, Variable], most: int = MOST_COMBINATIONS
) -> Iterator[dict[Key, int]]:
    """Picks of a value for each variable: all, or, if more than `most`, each changed alone."""
    ranges = [range(len(variable.values)) for variable in found.values()]
    if prod(map(len, ranges)) <= most:
        for indices in product(*ranges):
            yield dict(zip(found, indices, strict=True))
        return
    first = dict.fromkeys(found, 0)
    yield first
    for key, variable in found.items():
        for index in range(1, len(variable.values)):
            yield {**first, key: index}


def _repeated(key: Key, variable: Variable, taken: Mapping[int, Any]) -> list[Problem]:
    if not isinstance(variable, Grid):
        return []
    problems: list[Problem] = []
    seen: set[str] = set()
    for index in sorted(taken):
        text = json.dumps(taken[index], sort_keys=True)
        if text in seen:
            message = f"the grid of {key[-1]} has {show(taken[index])} twice. Keep one."
            problems.append(((*key, "grid", index), message))
        seen.add(text)
    return problems


def _as_written(key: Key, found: Mapping[Key, Variable], picks: Mapping[Key, int]) -> Key:
    """The key of a value inside a grid or range, as the file has it: (..., "grid", 2)."""
    for variable_key, variable in found.items():
        if key[: len(variable_key)] == variable_key:
            index, rest = picks[variable_key], key[len(variable_key) :]
            if isinstance(variable, Range) and index == len(variable.drawn):
                return (*variable_key, "otherwise", *rest)
            return (*variable_key, next(iter(variable.as_written())), index, *rest)
    return key


def _lookup(options: Any, key: Key) -> Any:
    for name in key:
        options = options[name]
    return options
