"""Dense networks, each trained once and kept under a hash of all that made it.

Beside them lie the stages that methods share (see `shared_stage`), under hashes of what made these.
"""

import hashlib
import importlib
import inspect
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from testbed import model_zoo
from testbed.file_lock import locked
from testbed.names import import_object, is_reference
from testbed.own_modules import own_modules
from testbed.tensor_file import DamagedFileError, read_tensors, write_tensors

Spec = Mapping[str, Any]
History = list[dict[str, float]]
Kept = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""What a file holds: tensors, and texts beside them."""
T = TypeVar("T")

_OF_A_NETWORK = ("history", "duration_s")

# What shapes a dense network beside its images, which the spec has a fingerprint of.
CODE = (
    "augmentation.py",
    "backbones.py",
    "data.py",
    "images.py",
    "machine.py",
    "model_zoo.py",
    "own_backbones.py",
    "prediction.py",
    "resnet.py",
    "training.py",
    "weights.py",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DenseRecord:
    """How a dense network came to be."""

    key: str
    path: Path
    history: History
    """What the training reported, an epoch an entry."""
    duration_s: float
    """Of the training, whenever that was."""
    found: bool
    """Whether it was there already."""


class DenseStore:
    """A folder of dense networks, for any number of processes at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(spec: Spec) -> str:
        """The hash of a spec, and of the code that makes a network of it.

        The code is the testbed's, torch's version, and each module that the spec names as
        `package.module:object`, with all of the user's own modules that it imports; of a network
        of timm or torchvision, the library's version.

        Args:
            spec: JSON-able; the order of keys does not matter. Of a teacher, holds the key.

        Raises:
            ValueError: if a `package.module:object` cannot be imported.
        """
        made_by = {"spec": spec, "code": _testbed_code(), "modules": _modules_code(spec)}
        return hashlib.sha256(_canonical(made_by).encode()).hexdigest()

    def get_or_train(
        self,
        spec: Spec,
        build: Callable[[], nn.Module],
        train: Callable[[nn.Module, Path], History],
    ) -> tuple[nn.Module, DenseRecord]:
        """The network of `spec`, trained if there is none yet; on the CPU, in eval mode.

        See `get_or_make`.

        Args:
            build: makes the untrained network; seeds its own weights.
            train: trains it in place and returns its history; gets the path of a file to keep its
                state in, that is removed when the network is there.
        """

        def make(unfinished: Path) -> Kept:
            network = build()
            started = time.monotonic()
            history = train(network, unfinished / "training.safetensors")
            texts = {"history": history, "duration_s": time.monotonic() - started}
            return network.state_dict(), {name: json.dumps(text) for name, text in texts.items()}

        def load(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> tuple[nn.Module, Any]:
            network = build()
            network.load_state_dict(tensors)
            return network.eval(), {name: json.loads(texts[name]) for name in _OF_A_NETWORK}

        (network, of_it), path, found = self.get_or_make(spec, make, load)
        return network, DenseRecord(key=path.stem, path=path, found=found, **of_it)

    def get_or_make(
        self,
        spec: Spec,
        make: Callable[[Path], Kept],
        load: Callable[[Mapping[str, Tensor], Mapping[str, str]], T],
    ) -> tuple[T, Path, bool]:
        """What is kept of `spec`, made if there is nothing yet; its file; whether it was there.

        Of several processes that want the same one makes it, while the others wait; if it is
        killed, the next takes over. A damaged file is made again, with a warning in the log.

        Args:
            make: gets a folder to keep its own state in, that is removed when the file is there.
            load: takes what the file holds, also where it was made right now; raises RuntimeError
                if the tensors do not fit.
        """
        key = self.key(spec)
        path = self.folder / f"{key}.safetensors"
        with suppress(FileNotFoundError, DamagedFileError):
            return _load(path, spec, load), path, True
        with locked(self.folder / f"{key}.lock"):
            try:  # another process may have made it while we waited
                return _load(path, spec, load), path, True
            except FileNotFoundError:
                pass
            except DamagedFileError as error:
                log.warning("%s It is made again.", error)
            for leftover in self.folder.glob(f".{key}.*.tmp"):  # of a killed process
                leftover.unlink()
            unfinished = self.folder / f"{key}.unfinished"
            unfinished.mkdir(exist_ok=True)
            tensors, texts = make(unfinished)
            write_tensors(path, tensors, {"spec": _canonical(spec), **texts})
            shutil.rmtree(unfinished)
            return _load(path, spec, load), path, False


def _load(
    path: Path, spec: Spec, load: Callable[[Mapping[str, Tensor], Mapping[str, str]], T]
) -> T:
    tensors, texts = read_tensors(path)
    if texts.get("spec") != _canonical(spec):
        raise DamagedFileError(f"{path} is damaged (it holds something else than its name says).")
    try:
        return load(tensors, texts)
    except RuntimeError as error:
        raise DamagedFileError(f"{path} does not fit its network ({error}).") from error


@cache
def _testbed_code() -> list[str]:
    folder = Path(__file__).parent
    return [torch.__version__, *(_hash((folder / name).read_bytes()) for name in CODE)]


def _modules_code(spec: Any) -> dict[str, str]:
    """The code, hashed, of every module of the user's that is named anywhere in `spec`."""
    if isinstance(spec, Mapping):
        spec = list(spec.values())
    if isinstance(spec, list | tuple):
        return {name: code for part in spec for name, code in _modules_code(part).items()}
    if isinstance(spec, str) and model_zoo.library_of(spec):
        return {spec: model_zoo.version_of(spec)}
    if not (isinstance(spec, str) and is_reference(spec)):
        return {}
    import_object(spec)  # for its error messages
    name = spec.partition(":")[0]
    files = own_modules(name) or {name: Path(inspect.getfile(importlib.import_module(name)))}
    return {module: _hash(file.read_bytes()) for module, file in files.items()}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
