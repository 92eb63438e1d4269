"""Shared stages: a method's first steps, made once for all trials that agree in what enters them.

A stage is kept beside the dense networks and found by a hash of the method's options that enter it,
the dense network, data, seed, both trainings, and the code. Whether it is found or made, a trial
goes on from it bit for bit, with the same epochs spent and the same reports.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel
from torch import Tensor, nn

from testbed.data import Splits
from testbed.dense_store import DenseStore, Kept
from testbed.machine import best_precision
from testbed.method import Run
from testbed.own_modules import own_modules
from testbed.tensor_file import checksum


@runtime_checkable
class SharesStage(Protocol):
    """A method that begins with steps which few of its options enter.

    Its `prune` has them from `obtain_stage`, before it spends any epochs. A sweep makes each stage
    before the first trial that needs it.
    """

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        """The names of the options that enter."""
        ...

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        """Makes it: tensors that are all the method needs to go on.

        Args:
            model: the trained dense network, left unchanged.
            data: with the validation images that the method is judged on alone (see `HoldsBack`).
            run: one of the stage's own. Nobody judges it on its way.
        """
        ...


def obtain_stage(
    method: SharesStage, model: nn.Module, data: Splits, run: Run
) -> Mapping[str, Tensor]:
    """A method's stage, found or made now, on any device; `run` goes on as if it had made it.

    It is kept where the dense network is, or else in the run's folder, if there is one.
    """

    def make(unfinished: Path | None) -> Kept:
        own = replace(run, folder=unfinished, judge=None)  # it reports through `run`
        tensors = _with_stage_options(method).stage(model, data, own)
        spent, reported = str(own.epochs_spent), json.dumps(own.reported)
        return tensors, {"epochs_spent": spent, "reported": reported}

    folder = run.folder if run.dense is None else run.dense.path.parent
    if folder is None:
        (tensors, texts), found = make(None), False
    else:
        spec = stage_spec(method, model, data, run)
        (tensors, texts), _, found = DenseStore(folder).get_or_make(spec, make, _as_they_are)
    reported = json.loads(texts["reported"]) if found else []
    run.resume_after(run.epochs_spent + int(texts["epochs_spent"]), reported)
    return tensors


def _with_stage_options(method: SharesStage) -> SharesStage:
    """A method that has the defaults for all options that do not enter its stage."""
    assert isinstance(method, BaseModel)
    options = type(method).model_fields.items()
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in options
        if name not in method.stage_options() and not field.is_required()
    }
    alike: SharesStage = method.model_copy(update=defaults)
    return alike


def stage_spec(method: SharesStage, model: nn.Module, data: Splits, run: Run) -> dict[str, Any]:
    """What a `DenseStore` keeps a stage under."""
    assert isinstance(method, BaseModel)
    teachers = (run.teacher, run.teacher_from_scratch)
    return {
        "stage_of": f"{type(method).__module__}.{type(method).__qualname__}",
        "options": method.model_dump(mode="json", include=set(method.stage_options())),
        "dense": run.dense and run.dense.key,
        "weights": checksum(model.state_dict(), {}),
        "teachers": [each and checksum(each.state_dict(), {}) for each in teachers],
        "data": data.fingerprint,
        "seed": run.seed,
        "training": run.training.model_dump(mode="json"),
        "fine_tuning": run.fine_tuning.model_dump(mode="json"),
        "computed": f"{run.device.type} {best_precision(run.device)}",
        "code": _code(type(method).__module__),
    }


def _as_they_are(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Kept:
    return tensors, texts


@cache
def _code(module: str) -> str:
    """A hash of what may run for a method's stage: its package, this one, a user's own modules."""
    files = set(own_modules(module).values())
    for name in ("testbed", module.partition(".")[0]):
        source = getattr(importlib.import_module(name), "__file__", None)
        if source is not None:  # else a folder without __init__.py, or a notebook
            is_package = Path(source).name == "__init__.py"
            files |= {*Path(source).parent.rglob("*.py")} if is_package else {Path(source)}
    hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()
