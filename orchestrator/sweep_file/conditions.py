"""Ranges that are searched only where other options have certain values.

    threshold: {uniform: [0.5, 3.0], when: {scope: layer}, otherwise: 1.0}
    learning_rate: {log_uniform: [0.001, 0.1], when: {method: [rnp, static_prefix]}}
    distillation: {choice: [0.5], when: {keep_multiplications: [0.26, 0.4]}}

The last has one value, so that nothing is searched.

A name is that of an option beside it; a dotted path that of one in another section; `method` the
trial's method. Where the condition fails the option is what stands in `otherwise`, or its default.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.sweep_file.grids_and_ranges import (
    ABSENT,
    METHOD,
    Condition,
    Grid,
    Range,
    fill,
    lookup,
    plain_text,
    ranges_of,
)
from orchestrator.sweep_file.schema import SHARED
from orchestrator.sweep_file.yaml_reader import Key, dotted
from testbed.names import unknown

Sections = Mapping[str, Any]  # the shared sections and `methods`, grids and ranges in their places
Problem = tuple[Key, str]
SECTIONS = (*SHARED, "methods")


def settle(
    ranges: Mapping[Key, Range], suggest: Callable[[str, Range], Any]
) -> tuple[dict[Key, Any], dict[str, Any]]:
    """The value of each range, and by dotted path those of them that were suggested.

    An option is suggested after those that it depends on; one that is not searched is `otherwise`.
    """
    settled: dict[Key, Any] = {}
    suggested: dict[str, Any] = {}
    for key, found in _in_order(ranges).items():
        settled[key] = found.otherwise
        if all(settled[condition.option] in condition.values for condition in found.when):
            settled[key] = suggested[dotted(key)] = suggest(dotted(key), found)
    return settled, suggested


def decided(sections: Sections, method: str | None = None) -> dict[str, Any]:
    """The sections of one study, without the conditions that hold or fail in all of its trials.

    Args:
        method: the study's; None for what holds whatever the method.
    """
    values: dict[Key, Any] = {}
    for key, found in _in_order(ranges_of(sections)).items():
        still_open = []
        for condition in found.when:
            value = method if condition.option == METHOD else lookup(sections, condition.option)
            value = values.get(condition.option, value)
            if (value is None and condition.option == METHOD) or isinstance(value, Range):
                still_open.append(condition)
            elif value not in condition.values:
                values[key] = found.otherwise
                break
        else:
            if still_open:
                values[key] = replace(found, when=tuple(still_open))
            elif len(found.drawn) == 1:
                values[key] = found.drawn[0]
            else:
                values[key] = replace(found, when=(), otherwise=ABSENT)
    return fill(sections, values)


def misplaced_conditions(sections: Sections, methods: Mapping[str, str]) -> Iterator[Problem]:
    """What is wrong with the conditions: options that are not there, values they never have.

    Args:
        sections: those that are sound.
        methods: every method that is known.
    """
    ranges = ranges_of(sections)
    for key, found in ranges.items():
        for condition in found.when:
            place = (*key, "when", condition.name)
            for message in _wrong(key, condition, sections, methods):
                yield place, f"{dotted(key)}: when {condition.name}: {message}"
    for key in ranges.keys() - _in_order(ranges):
        yield (*key, "when"), f"{dotted(key)}: its condition depends on itself."


def _wrong(
    key: Key, condition: Condition, sections: Sections, methods: Mapping[str, str]
) -> Iterator[str]:
    option = condition.option
    if option == METHOD:
        for name in condition.values:
            if str(name) not in methods and ":" not in str(name):
                yield unknown("method", str(name), methods)
        return
    if option == key:
        return  # a circle
    if option[0] == "methods" and option[:2] != key[:2]:
        yield "a method's options are known to itself alone. Write method: and its name."
        return
    if option[0] in SECTIONS and option[0] not in sections:
        return  # it has mistakes of its own
    value = lookup(sections, option)
    if value is ABSENT:
        yield f"there is no option {dotted(option)}, or it is not set."
    elif isinstance(value, Range) and value.kind in ("uniform", "log_uniform"):
        yield f"it is {value}, of which no single value can be waited for. Use a choice or int."
    elif isinstance(value, Range) and value.when and value.otherwise is ABSENT:
        yield "it has a condition itself. Say there what it is otherwise."
    elif isinstance(value, Range | Grid):
        for wanted in condition.values:
            if not _takes(value, wanted):
                yield f"it is never {plain_text(wanted)}, but {value}."


def _takes(value: Range | Grid, wanted: Any) -> bool:
    if isinstance(value, Range) and value.kind == "int" and isinstance(wanted, int):
        low, high = value.drawn
        return low <= wanted <= high or wanted in value.values
    return wanted in value.values


def _in_order(ranges: Mapping[Key, Range]) -> dict[Key, Range]:
    """The ranges, each after those that it depends on; those in a circle are left out.

    Whichever may come next and is written first does: samplers draw in this order.
    """
    ordered: dict[Key, Range] = {}
    left = dict(ranges)

    def is_ready(key: Key) -> bool:
        return not any(condition.option in left for condition in left[key].when)

    while ready := next(filter(is_ready, left), None):
        ordered[ready] = left.pop(ready)
    return ordered
