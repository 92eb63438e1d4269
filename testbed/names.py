"""Names that a user types: what to say when one is unknown, and how to import one."""

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

MOST_LISTED = 40  # of known names; of more, a few that are near
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the nearest known one, if one is near, and the known ones.

    >>> unknown("method", "thinnet", ["thinet", "dense"])
    "unknown method 'thinnet'. Did you mean 'thinet'? Known: dense, thinet."
    """
    choices = sorted(known)
    near = nearest(name, choices)
    suggestion = f" Did you mean {near!r}?" if near else ""
    listed = ", ".join(choices) or "none"
    if len(choices) > MOST_LISTED:
        some = difflib.get_close_matches(name, choices, n=5, cutoff=0.3) or choices[:5]
        listed = f"{len(choices):,}, among them {', '.join(some)}"
    return f"unknown {kind} {name!r}.{suggestion} Known: {listed}."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest, if one is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def is_reference(name: str) -> bool:
    """Whether `name` has the form `package.module:object`."""
    return _REFERENCE.fullmatch(name) is not None


def import_object(reference: str) -> Any:
    """Imports what `package.module:object` names.

    Raises:
        ValueError: if the form is wrong, the module is not found or fails while it is imported, or
            it has no such object.
    """
    if not is_reference(reference):
        raise ValueError(f"Expected a name like 'package.module:object', got {reference!r}.")
    module_name, _, object_path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Cannot import {reference!r}: there is no module {error.name!r}. Start Python where "
            "that package lies, or install it."
        ) from error
    except Exception as error:
        # Whatever the user's module raises at import is the user's to mend, so it is named here.
        raise ValueError(
            f"Cannot import {reference!r}: module {module_name!r} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    for attribute in object_path.split("."):
        if not hasattr(found, attribute):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ValueError(
                f"Cannot import {reference!r}: " + unknown("object", attribute, public)
            )
        found = getattr(found, attribute)
    return found
