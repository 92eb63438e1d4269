"""Weights of a pretrained network: read from a file as tensors alone, and put into a network.

A file is safetensors, or what `torch.save` wrote of a state dict; no other object is unpickled.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch.serialization
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.names import nearest

WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts keep weights under
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt"}  # that weights usually have
MOST_NAMED = 3

log = logging.getLogger(__name__)


def is_file(weights: str) -> bool:
    """Whether `weights` names a file, there or not, rather than weights that can be downloaded."""
    path = Path(weights)
    return bool(path.suffix) or len(path.parts) > 1 or path.is_file()


def check_file(path: Path) -> None:
    """
    Raises:
        ValueError: if there is no such file.
    """
    if path.is_file():
        return
    folder = path.parent
    files = folder.iterdir() if folder.is_dir() else ()
    beside = [each.name for each in files if each.suffix in SUFFIXES]
    near = nearest(path.name, beside)
    raise ValueError(
        f"weights: there is no file {str(path)!r} (looked in {str(folder.resolve())!r})."
        + (f" Did you mean {str(folder / near)!r}?" if near else "")
    )


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, read again only if the file has changed."""
    check_file(path)
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; of a checkpoint, the one under a usual name.

    Raises:
        ValueError: if the file is missing, cannot be read, or holds something else.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {str(path)!r} cannot be read: {error}") from error
    try:
        found = torch.serialization.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"weights: {str(path)!r} holds more than weights, which may run code when it is read, "
            "or is damaged. Write the weights alone: torch.save(network.state_dict(), path), or "
            "safetensors.torch.save_file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"weights: {str(path)!r} cannot be read: {error}") from error
    return _state_dict(path, found)


def _state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    inside = found
    if isinstance(found, Mapping):
        inside = next((found[name] for name in WRAPPERS if name in found), found)
    if isinstance(inside, Mapping) and inside:
        tensors = {str(name): value for name, value in inside.items() if isinstance(value, Tensor)}
        if len(tensors) == len(inside):
            return tensors
    keys = f" with {_some(map(str, found))}" if isinstance(found, Mapping) else ""
    raise ValueError(
        f"weights: expected a state dict in {str(path)!r}, alone or under "
        f"{', '.join(map(repr, WRAPPERS))}, got {type(found).__name__}{keys}. Write it with "
        "torch.save(network.state_dict(), path)."
    )


def put_into(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    n_classes: int,
    new_head: bool = False,
) -> None:
    """Puts a state dict into a network; every name and shape has to fit.

    Args:
        source: where the weights come from, for the messages.
        n_classes: of the data, for which the network was built.
        new_head: whether a last layer of another number of classes may stay as it was drawn.

    Raises:
        ValueError: if they do not fit: which do not, and how many.
    """
    expected = network.state_dict()
    found = dict(tensors)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    counted = [name for name in expected if name.endswith(".num_batches_tracked")]
    found = {**{name: expected[name] for name in counted}, **found}  # old files lack them
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = [n for n in expected if n in found and expected[n].shape != found[n].shape]
    head = "" if missing or more else _head(other, expected, found, n_classes)
    if head:
        classes = f"{source} has {len(found[other[0]])} classes, the data set {n_classes}"
        if not new_head:
            raise ValueError(
                f"{classes}: only the last layer, {head}, differs. Give weights of a network of "
                f"these {n_classes} classes; or training.epochs of 1 or more, and that layer is "
                "drawn anew and all are trained."
            )
        log.warning("%s: the last layer, %s, is drawn anew.", classes, head)
        found |= {name: expected[name] for name in other}
    elif missing or more or other:
        problems = {
            f"it lacks {len(missing)} of {len(expected)}": sorted(missing),
            f"it has {len(more)} that the network lacks": sorted(more),
            f"{len(other)} are of another shape": _shapes(other, expected, found),
        }
        given = [f"{text} ({_some(names)})" for text, names in problems.items() if names]
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: {'; '.join(given)}. Give the weights "
            "of this network, built with the same options."
        )
    network.load_state_dict(found)


def _head(
    other: list[str], expected: Mapping[str, Tensor], found: Mapping[str, Tensor], n_classes: int
) -> str:
    """What alone differs, if it does so only in the number of classes; else empty."""
    for name in other:
        here, there = expected[name].shape, found[name].shape
        if here[1:] != there[1:] or here[:1] != (n_classes,):
            return ""
    return ", ".join(dict.fromkeys(repr(name.rpartition(".")[0]) for name in other))


def _shapes(
    names: list[str], expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[str]:
    return [f"{n} {tuple(found[n].shape)}, here {tuple(expected[n].shape)}" for n in names]


def _some(names: Iterable[str]) -> str:
    """The first few of them."""
    every = list(names)
    return ", ".join(every[:MOST_NAMED]) + (", ..." if len(every) > MOST_NAMED else "")
