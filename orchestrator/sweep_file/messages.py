"""Pydantic's errors in our words: what was expected, what came, what to do."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from orchestrator.sweep_file.grids_and_ranges import RESERVED, plain_text
from orchestrator.sweep_file.yaml_reader import Key, dotted
from testbed.names import unknown

_EXPECTED = {  # where pydantic's own words would speak of Python, or say less
    "bool_type": "true or false",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "none_required": "null",
    "string_type": "text",
    "too_long": "{max_length} or fewer values",
    "too_short": "{min_length} or more values",
    **dict.fromkeys(("int_from_float", "int_type"), "a whole number"),
    **dict.fromkeys(("frozen_set_type", "list_type", "set_type", "tuple_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_attributes_type", "model_type"),
        "options like {{name: value}}",
    ),
}


def problems_in_our_words(
    errors: Sequence[ErrorDetails], model: type[BaseModel], options: Mapping[str, Any], owner: str
) -> list[tuple[Key, str]]:
    """A message for each mistake, with the key in `options` of the value it is about.

    Args:
        errors: pydantic's, of `model` given `options`.
        owner: what the options belong to: "training"; "" for a whole document.
    """
    problems: list[tuple[Key, str]] = []
    mistakes: dict[Key | int, list[tuple[Key, ErrorDetails]]] = {}  # those of one union are one
    for number, error in enumerate(errors):
        key, union = _locate(error, options)
        mistakes.setdefault(number if union is None else union, []).append((key, error))
    for members in mistakes.values():
        best = max((key for key, _ in members), key=len)  # the alternative that fits the most
        together = [error for key, error in members if key == best]
        problems.append((best, _message(together, best, model, owner)))
    return problems


def show(value: Any) -> str:
    """`value` for a message: text in quotes, cut to a length that fits a line."""
    text = repr(value) if isinstance(value, str) else plain_text(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(error: ErrorDetails, options: Any) -> tuple[Key, Key | None]:
    """The key that an error is about, and the key of the union whose alternative it is.

    Pydantic puts the names of a union's alternatives between the keys: ("classes", "list[str]", 0).
    """
    parts = error["loc"]
    absent = parts[-1:] if error["type"] == "missing" else ()
    key: Key = ()
    union: Key | None = None
    value = options
    for part in parts[: len(parts) - len(absent)]:
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, dict) and part in inner:
            key, value = (*key, part), inner[part]
        elif union is None and part != "[key]":
            union = key
    return (*key, *absent), union


def _message(errors: Sequence[ErrorDetails], key: Key, model: type[BaseModel], owner: str) -> str:
    """One message for a mistake; several errors are the alternatives of one union."""
    refused = [error for error in errors if error["type"] in ("value_error", "assertion_error")]
    error = (refused or errors)[0]  # what says most: a validator's own words
    kind = error["type"]
    name, outer = (dotted(keys if owner == "" else (owner, *keys)) for keys in (key, key[:-1]))
    if kind == "extra_forbidden":
        what = "option" if outer else "section"
        message = unknown(what, str(key[-1]), _fields_at(model, key[:-1]))
        return f"{outer}: {message}" if outer else message
    if kind == "missing":
        what = f"{outer}: the option" if outer else "the section"
        return f"{what} {str(key[-1])!r} is missing."
    if kind in ("value_error", "assertion_error"):
        reason = str(error.get("ctx", {}).get("error") or error["msg"])
        return f"{name}: {reason}" if name else reason
    expected = " or ".join(dict.fromkeys(map(_expected, errors)))
    advice = _advice(error, expected, owner)
    return f"{name}: expected {expected}, got {show(error['input'])}.{advice}"


def _expected(error: ErrorDetails) -> str:
    if error["type"] not in _EXPECTED:
        return re.sub(r"^\w+ should (be |have )?", "", error["msg"])
    context = {
        name: f"{value:g}" if isinstance(value, float) else value
        for name, value in error.get("ctx", {}).items()
    }
    return _EXPECTED[error["type"]].format(**context)


def _advice(error: ErrorDetails, expected: str, owner: str) -> str:
    value = error["input"]
    if isinstance(value, dict):
        if any(name in RESERVED for name in value):
            return " It takes no grid and no range."
        near = difflib.get_close_matches(str(next(iter(value), "")), RESERVED, n=1)
        return f" Did you mean {{{near[0]}: ...}}?" if near and owner else ""
    if isinstance(value, list) and len(value) > 1 and owner and "options" not in expected:
        return " To try each of these write {grid: [...]}."
    if not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, re.findall(r"'([^']*)'", expected), n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    if "number" in expected and re.fullmatch(r"[-+\d.eE]+", value):
        return " Remove the quotes."
    if "true or false" in expected and value.lower() in ("yes", "on", "no", "off"):
        return f" Write {'true' if value.lower() in ('yes', 'on') else 'false'}."
    return ""


def _fields_at(model: type[BaseModel], key: Key) -> Iterable[str]:
    """The options that `model` knows at `key`: of the model or TypedDict that its field names."""
    fields: dict[str, Any] = {name: field.annotation for name, field in model.model_fields.items()}
    for name in key:
        annotation = fields[str(name)]
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                fields = {n: field.annotation for n, field in candidate.model_fields.items()}
            elif is_typeddict(candidate):
                fields = get_type_hints(candidate)
    return fields
