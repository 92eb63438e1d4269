"""Tensors and text in one safetensors file, there whole or not at all. Nothing is pickled."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CHECKSUM = "checksum"


class DamagedFileError(ValueError):
    """The file does not hold what was once written to it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write a file, with a checksum of all that is in it; one of that name is replaced.

    Whoever reads meanwhile, and whatever stops this process, finds the old file or the new one. A
    killed process may leave a `.NAME.*.tmp` behind.
    """
    # Copies, because safetensors takes no two names for one memory (tied weights).
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = save(copies, {**texts, CHECKSUM: checksum(copies, texts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a name without content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the texts of a file.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if one bit of it is not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error}).") from error
    if texts.pop(CHECKSUM, None) != checksum(tensors, texts):
        raise DamagedFileError(f"{path} is damaged (its checksum differs).")
    return tensors, texts


def checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """A hash of all that is in both, whatever their order and the tensors' devices."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
