"""Reference that MkDocs draws from the code, where a page has one of these lines.

::: options package.module:Class     a table of a model's options
::: methods                          every method: its module's words, and its options
::: command package.module           what `python -m package.module --help` prints
"""

import importlib
import re
import subprocess
import sys
from typing import Any

from pydantic import BaseModel

from orchestrator.methods import METHODS, method_class
from testbed.names import import_object

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {
    "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
    "array": "list", "object": "mapping", "null": "",
}  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page."""
    return re.sub(r"^::: (\w+) ?(\S*)$", _drawn, markdown, flags=re.MULTILINE)


def _drawn(line: re.Match[str]) -> str:
    kind, name = line.groups()
    if kind == "options":
        return options_table(import_object(name))
    if kind == "methods":
        return "\n\n".join(map(method_section, METHODS))
    if kind == "command":
        return command_help(name)
    raise ValueError(f"Expected options, methods or command after ':::', got {kind!r}.")


def options_table(model: type[BaseModel]) -> str:
    """A row for each option: what it takes, what it is if not given, and what it does."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows = ["| option | takes | default | what it does |", "|---|---|---|---|"]
    for name, option in schema.get("properties", {}).items():
        default = "required" if name in required else _written(option.get("default"))
        meaning = " ".join(_meaning(option).split())
        cells = (f"`{name}`", _takes(option, schema), default, meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else "It has no options."


def method_section(name: str) -> str:
    """A method as its file describes it."""
    module = METHODS[name].partition(":")[0]
    words = importlib.import_module(module).__doc__ or ""
    return f"## `{name}`\n\n{words.strip()}\n\n{options_table(method_class(name))}"


def command_help(module: str) -> str:
    """As the terminal shows it."""
    command = [sys.executable, "-m", module, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"```text\n{found.stdout}```"


def _meaning(option: dict[str, Any]) -> str:
    """Its description, which may stand at the one kind of value that it takes beside None."""
    parts = [option, *option.get("anyOf", [])]
    return next((part["description"] for part in parts if "description" in part), "")


def _takes(option: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON schema in words: whole number ≥ 1, or `all`."""
    if "$ref" in option:
        option = schema["$defs"][option["$ref"].rpartition("/")[2]]
    if "anyOf" in option:
        each = dict.fromkeys(_takes(part, schema) for part in option["anyOf"])
        return ", or ".join(filter(None, each))
    if "enum" in option or "const" in option:
        return ", ".join(f"`{value}`" for value in option.get("enum", [option.get("const")]))
    limits = [f"{sign} {option[key]:g}" for key, sign in LIMITS.items() if key in option]
    return f"{TYPES[option.get('type', 'object')]} {', '.join(limits)}".strip()


def _written(default: Any) -> str:
    if default is None or default == "":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
