"""What may stand for an option's value in a sweep file: a grid, crossed, or a range, searched."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from orchestrator.sweep_file.yaml_reader import Key, dotted

RangeKind = Literal["uniform", "log_uniform", "int", "choice"]
RANGE_KINDS: tuple[str, ...] = get_args(RangeKind)
RESERVED = ("grid", *RANGE_KINDS)
METHOD: Key = ("method",)  # what a condition calls the trial's method
ABSENT = object()  # the value of an option that is left out, so that its default holds


@dataclass(frozen=True)
class Grid:
    """Every one of `values` is tried with every value of the other grids."""

    values: tuple[Any, ...]

    def as_written(self) -> dict[str, Any]:
        return {"grid": list(self.values)}

    def __str__(self) -> str:
        return ", ".join(map(plain_text, self.values))


@dataclass(frozen=True)
class Condition:
    """That an option has one of some values."""

    name: str  # as it is written
    option: Key  # where the option lies, or METHOD
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} is {' or '.join(map(plain_text, self.values))}"


@dataclass(frozen=True)
class Range:
    """A range that the search draws from.

    Where one of the conditions `when` fails, the option is not searched, but `otherwise`.
    """

    kind: RangeKind
    drawn: tuple[Any, ...]  # all choices; of other kinds both ends, which are included
    when: tuple[Condition, ...] = ()
    otherwise: Any = ABSENT

    @property
    def values(self) -> tuple[Any, ...]:
        """The values that are checked before anything starts."""
        return (*self.drawn, self.otherwise) if self.when else self.drawn

    def as_written(self) -> dict[str, Any]:
        written: dict[str, Any] = {self.kind: list(self.drawn)}
        if self.when:
            written["when"] = {
                each.name: list(each.values) if len(each.values) > 1 else each.values[0]
                for each in self.when
            }
        if self.otherwise is not ABSENT:
            written["otherwise"] = self.otherwise
        return written

    def __str__(self) -> str:
        condition = " where " + " and ".join(map(str, self.when)) if self.when else ""
        if self.kind == "choice":
            return f"choice of {', '.join(map(plain_text, self.drawn))}{condition}"
        return f"{self.kind} {self.drawn[0]} to {self.drawn[1]}{condition}"


Variable = Grid | Range
Refuse = Callable[[Key, str], None]  # told of a mistake, and of the value that it is in


def read_variables(options: Mapping[str, Any], refuse: Refuse, key: Key = ()) -> dict[str, Any]:
    """`options` with their `{grid: ...}` and `{uniform: ...}` made Grids and Ranges, at any depth.

    Those that are malformed are refused, and left out.
    """
    read: dict[str, Any] = {}
    for name, value in options.items():
        inner = (*key, name)
        if not isinstance(value, dict):
            read[name] = value
        elif not any(reserved in value for reserved in RESERVED):
            read[name] = read_variables(value, refuse, inner)
        else:
            try:
                read[name] = _variable(value, inner)
            except ValueError as error:
                refuse(inner, f"{dotted(inner)}: {error}.")
    return read


def find_variables(options: Mapping[str, Any]) -> dict[Key, Variable]:
    """Every grid and range in options as a sweep file has them, by its key."""
    return dict(variables(read_variables(options, lambda key, message: None)))


def variables(options: Mapping[str, Any], key: Key = ()) -> Iterator[tuple[Key, Variable]]:
    """Every grid and range in `options`, with its key, in the order they are written."""
    for name, value in options.items():
        if isinstance(value, Grid | Range):
            yield (*key, name), value
        elif isinstance(value, dict):
            yield from variables(value, (*key, name))


def ranges_of(options: Mapping[str, Any]) -> dict[Key, Range]:
    """Every range in `options`, by its key."""
    return {key: found for key, found in variables(options) if isinstance(found, Range)}


def lookup(options: Any, key: Key) -> Any:
    """What stands at a key; ABSENT if nothing does."""
    for name in key:
        if not isinstance(options, Mapping) or name not in options:
            return ABSENT
        options = options[name]
    return options


def fill(options: Mapping[str, Any], values: Mapping[Key, Any], key: Key = ()) -> dict[str, Any]:
    """A copy of `options` with `values` at their keys, in place of what stands there.

    What is ABSENT is left out.
    """
    filled: dict[str, Any] = {}
    for name, value in options.items():
        inner = (*key, name)
        if inner in values:
            if values[inner] is not ABSENT:
                filled[name] = values[inner]
        else:
            filled[name] = fill(value, values, inner) if isinstance(value, dict) else value
    return filled


def plain_text(value: Any) -> str:
    """`value` as a sweep file would have it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {plain_text(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain_text, value)) + "]"
    return "null" if value is None else str(value)


def _variable(written: Mapping[str, Any], key: Key) -> Variable:
    kind = next(name for name in RESERVED if name in written)
    beside = () if kind == "grid" else ("when", "otherwise")
    if others := [name for name in written if name not in (kind, *beside)]:
        alone = "takes when and otherwise beside it" if beside else "stands alone"
        raise ValueError(f"{kind} {alone}, got also {', '.join(others)}")
    values = written[kind] if isinstance(written[kind], list) else []
    if kind == "grid":
        if not values:
            raise ValueError("a grid takes a list of at least one value, as in {grid: [4, 6, 8]}")
        if any(_holds_variables(value) for value in values):
            raise ValueError("a grid's values are plain, with no grid or range in them")
        return Grid(tuple(values))
    if kind == "choice":
        drawn = _choices(values, least=1 if written.keys() & beside else 2)
    else:
        drawn = _ends(kind, values)
    return Range(cast(RangeKind, kind), drawn, *_conditions(written, key))


def _choices(values: list[Any], least: int) -> tuple[Any, ...]:
    if len(values) < least:
        raise ValueError(
            "a choice takes a list of at least two values, as in {choice: [a, b]}, or one and a "
            "when"
        )
    if any(isinstance(value, dict | list) for value in values):
        raise ValueError("a choice's values are numbers, text, true, false or null")
    if len(set(map(repr, values))) < len(values):
        raise ValueError("a choice names each value once")
    return tuple(values)


def _ends(kind: str, values: list[Any]) -> tuple[float, float]:
    number, types = ("whole number", int) if kind == "int" else ("number", int | float)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, types) for v in values):
        raise ValueError(f"{kind} takes two {number}s, as in {{{kind}: [low, high]}}")
    low, high = values if kind == "int" else map(float, values)
    if low >= high:
        raise ValueError(f"{kind} goes from low to high, got {low} to {high}")
    if kind == "log_uniform" and low <= 0 <= high:
        raise ValueError(f"log_uniform needs both ends above 0, or both below, got {low} to {high}")
    return low, high


def _conditions(written: Mapping[str, Any], key: Key) -> tuple[tuple[Condition, ...], Any]:
    """The conditions beside a range, if there are any, and what stands where they fail."""
    otherwise = written.get("otherwise", ABSENT)
    if "when" not in written:
        if otherwise is not ABSENT:
            raise ValueError("otherwise needs a condition, as in when: {option: value}")
        return (), ABSENT
    when = written["when"]
    if not isinstance(when, dict) or not when:
        raise ValueError("when takes options and their values, as in when: {option: value}")
    if _holds_variables(otherwise):
        raise ValueError("otherwise takes a plain value, with no grid or range in it")
    conditions = []
    for name, values in when.items():
        if values == [] or _holds_variables(values) or isinstance(values, dict):
            raise ValueError(f"when {name} takes a value or a list of values")
        path = tuple(name.split("."))
        option = path if path == METHOD or len(path) > 1 else (*key[:-1], name)
        listed = tuple(values) if isinstance(values, list) else (values,)
        conditions.append(Condition(name, option, listed))
    return tuple(conditions), otherwise


def _holds_variables(value: Any) -> bool:
    if isinstance(value, dict):
        return any(name in RESERVED for name in value) or any(map(_holds_variables, value.values()))
    return isinstance(value, list) and any(map(_holds_variables, value))
