"""YAML in which every value knows where it was written, so that a mistake is reported on its line.

Plain values are read as YAML 1.2 has them: `1e-3` is a number, while `yes` and `2024-01-01` are
text. Numbers are finite and fit in 64 bits, and the text of a key is the key, so that whatever is
read can be written as JSON.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Key = tuple[str | int, ...]  # ("backbone", "depth"): where a value lies in the document


def dotted(key: Key) -> str:
    """A key as it is written in messages: backbone.depth."""
    return ".".join(map(str, key))


MOST_VALUES = 20_000  # aliases of aliases can make a small file hold billions
DEEPEST = 20

_INT = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Takes plain text for a number, `true`, `false` or `null` as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that this reader or a YAML 1.1 reader would take for something else."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"(?:~|null|Null|NULL|)$"), [*"~nN", ""])
_Loader.add_implicit_resolver(
    _TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<$"), ["<"])
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_TAG + "int", _INT, [*"-+0123456789"])
    _class.add_implicit_resolver(_TAG + "float", _FLOAT, [*"-+.0123456789"])


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a line of the file, or a `--set` (those sort last)."""

    position: int
    label: str


class Problem(NamedTuple):
    place: Place
    text: str
    key: Key = ()


@dataclass
class Document:
    """A document, where its values lie, and what is wrong with it so far."""

    data: Any
    file: str
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[Key] = field(default_factory=set)  # reported already: nothing more about these

    def place(self, key: Key) -> Place:
        """The place of the value at `key`, or of the nearest value around it."""
        while key not in self.places and key:
            key = key[:-1]
        return self.places.get(key, Place(1, f"{self.file}:1"))

    def add_problem(self, key: Key, message: str) -> None:
        """Reports what is wrong with the value at `key`, unless it could not be read anyway."""
        around = (key[:end] for end in range(len(key) + 1))
        if not any(outer in self.unreadable for outer in around):
            self.problems.append(Problem(self.place(key), message, key))

    def refuse(self, key: Key, message: str) -> None:
        """Reports the value at `key`, of which nothing more is said."""
        self.add_problem(key, message)
        self.unreadable.add(key)

    def sorted_problems(self) -> list[str]:
        """Every problem once, as `file:line: message`, in the order of the lines."""
        problems = sorted(self.problems, key=lambda problem: problem.place)
        lines = [f"{problem.place.label}: {problem.text}" for problem in problems]
        return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def read_document(path: Path) -> Document:
    """Reads a YAML file; what is wrong with it is in `problems`."""
    document = Document(None, str(path))
    place = Place(0, document.file)
    try:
        document.data = _Reader(document).read(path.read_bytes().decode("utf-8-sig"), ())
        return document
    except FileNotFoundError:
        problem = "there is no such file."
    except IsADirectoryError:
        problem = "a folder, where a file is expected."
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        place, problem = Place(line, f"{path}:{line}"), "not UTF-8 text. Save the file as UTF-8."
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}."
    document.problems.append(Problem(place, problem))
    return document


def read_override(document: Document, override: str, number: int, option: str = "--set") -> None:
    """Puts the value of `key.path=value` in, with the mappings around it.

    Args:
        number: its place among all of them.
        option: of the command line that gave it, for the messages.
    """
    path, equals, text = override.partition("=")
    place = Place(10**9 + number, f"{option} {override if len(override) < 100 else path[:100]}")
    key = _split(path.strip())
    if not equals or not all(key):
        message = "expected key.path=value, as in backbone.depth=4."
        document.problems.append(Problem(place, message))
        return
    inner = document.data
    for end, name in enumerate(key[:-1], 1):
        if inner.get(name) is None:
            inner[name] = {}
            document.places[key[:end]] = place
        inner = inner[name]
        if not isinstance(inner, dict):
            message = f"{dotted(key[:end])} is a value and holds no options."
            document.problems.append(Problem(place, message))
            return
    _forget(document, key)
    inner[key[-1]] = _Reader(document, place).read(text, key)


def dump_yaml(data: Any) -> str:
    """`data` as YAML text that this module and any other reader of YAML read back as it was."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def _split(path: str) -> tuple[str, ...]:
    """The keys of a dotted path. The dots of `methods.package.module:Name` are the name's own."""
    keys = path.split(".")
    if keys[0] == "methods":
        for last in range(1, len(keys)):
            if ":" in keys[last]:
                return ("methods", ".".join(keys[1 : last + 1]), *keys[last + 1 :])
    return tuple(keys)


def _forget(document: Document, key: Key) -> None:
    """Drops all that was known of the value at `key`, which is about to be replaced."""
    document.problems = [p for p in document.problems if not p.key or p.key[: len(key)] != key]
    document.unreadable = {k for k in document.unreadable if k[: len(key)] != key}
    document.places = {k: v for k, v in document.places.items() if k[: len(key)] != key}


class _TooLargeError(Exception):
    """More values, or deeper ones, than any sweep file has."""


class _Reader:
    """Turns one YAML text into plain values and notes their places in a document."""

    def __init__(self, document: Document, place: Place | None = None) -> None:
        self.document = document
        self.fixed_place = place  # of a --set, whose lines say nothing
        self.n_values = 0

    def read(self, text: str, key: Key) -> Any:
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is None:
                self.document.places[key] = self._place(0)
                return None
            return self._value(node, key, self._place(node.start_mark.line))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = min(mark.line, text.rstrip().count("\n")) if mark else 0
            reason = " ".join(filter(None, [error.context, error.problem]))
            if "'\\t'" in reason:
                reason = "a tab. Indent with spaces"
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n")
            reason = f"the character {chr(error.character)!r} cannot stand in YAML"
        except (ValueError, OverflowError) as error:  # \UFFFFFFFF, which names no character
            line, reason = 0, str(error)
        except (RecursionError, _TooLargeError):
            line, reason = 0, f"more than {DEEPEST} levels or {MOST_VALUES:,} values"
        self.document.places[key] = self._place(line)
        self.document.refuse(key, f"not valid YAML: {reason}.")
        return None

    def _count(self) -> None:
        self.n_values += 1
        if self.n_values > MOST_VALUES:
            raise _TooLargeError

    def _place(self, line: int) -> Place:
        return self.fixed_place or Place(line + 1, f"{self.document.file}:{line + 1}")

    def _value(self, node: yaml.Node, key: Key, place: Place) -> Any:
        self._count()
        if len(key) > DEEPEST:
            raise _TooLargeError
        self.document.places[key] = place
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [
                    self._value(item, (*key, i), self._place(item.start_mark.line))
                    for i, item in enumerate(node.value)
                ]
            return _scalar(node)
        except _BadValueError as error:
            self.document.refuse(key, ": ".join(filter(None, [dotted(key), str(error)])))
            return None

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node, merged in _items(node):
            self._count()
            place = self._place(key_node.start_mark.line)
            name = _key_text(key_node)
            inner = (*key, name)
            if name not in values:
                values[name] = self._value(value_node, inner, place)
            elif not merged:  # what is merged in gives way to what stands there
                line = self.document.places[inner].position
                first = "" if self.fixed_place else f", first in line {line}"
                message = f"{dotted(inner)} is given twice{first}. Keep one."
                self.document.problems.append(Problem(place, message, inner))
        return values


class _BadValueError(ValueError):
    """A value that no option could have."""


def _items(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
    """The (key, value, whether merged) of a mapping: its own first, then what `<<` merges in."""
    merges = [value for key, value in node.value if key.tag == _TAG + "merge"]
    for key, value in node.value:
        if key.tag != _TAG + "merge":
            yield key, value, False
    for merge in merges:
        sources = merge.value if isinstance(merge, yaml.SequenceNode) else [merge]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise _BadValueError("'<<' merges a mapping in, and takes no other value.")
            for key, value, _ in _items(source):
                yield key, value, True


def _key_text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _BadValueError("a key is plain text, not a list or a mapping.")
    return _text(node.value)


def _scalar(node: yaml.Node) -> Any:
    text = node.value
    match isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG):
        case "str":
            return _text(text)
        case "null":
            return None
        case "bool":
            if text.lower() not in ("true", "false"):
                raise _BadValueError(f"expected true or false, got {text!r}.")
            return text.lower() == "true"
        case "int" | "float" as kind:
            return _number(text, whole=kind == "int")
    raise _BadValueError(f"the tag {node.tag!r} is not known here. Write a plain value.")


def _number(text: str, whole: bool) -> int | float:
    if len(text) > 300 or not (_INT if whole else _FLOAT).match(text):
        raise _BadValueError(f"expected a number, got {text[:40]!r}.")
    text = text.replace("_", "")
    if whole:
        if -(2**63) <= int(text) < 2**63:
            return int(text)
        raise _BadValueError(f"{text[:40]} is too large for a whole number of 64 bits.")
    value = math.inf if text.lower().endswith((".inf", ".nan")) else float(text)
    if not math.isfinite(value):
        raise _BadValueError(f"expected a finite number, got {text[:40]}.")
    return value


def _text(text: str) -> str:
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text):
        raise _BadValueError(f"the text {text[:40]!r} holds characters that do not print.")
    return text
