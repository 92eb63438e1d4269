"""Operators for deciding per image, compiled on the machine that uses them; else torch's own.

`python -m testbed.compiled` builds them, if there is a C++ compiler. They are registered with
torch, so they are dispatched, and their multiplications are counted, like any others.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("operators.cpp")


def library_path() -> Path:
    """Where the library for this source, this version of torch and CPUs like this one belongs."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    cpu = torch.backends.cpu.get_cpu_capability().lower()
    return SOURCE.with_name(f"operators-{source}-torch{torch.__version__}-{cpu}.so")


@cache
def operators() -> Any:
    """`torch.ops.deciding`, or None where it was not built."""
    path = library_path()
    if not path.exists():
        return None
    try:
        torch.ops.load_library(path)
    except OSError as error:
        log.warning("Deciding with torch's own operators, as %s does not load: %s", path, error)
        return None
    for free in (torch.ops.deciding.answer, torch.ops.deciding.pooled):
        register_flop_formula(free)(lambda *_, **__: 0)
    register_flop_formula(torch.ops.deciding.gate)(_gate_flops)
    register_flop_formula(torch.ops.deciding.conv_on)(_conv_flops)
    register_flop_formula(torch.ops.deciding.q_values)(_decision_flops)
    return torch.ops.deciding


def _decision_flops(features: Sequence[int], *others: Any, **_: Any) -> int:
    weights = [shape for shape in others if shape is not None and len(shape) == 2][1:]
    return 2 * features[0] * sum(rows * columns for rows, columns in weights)


def _gate_flops(_: Sequence[int], phi: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * phi[0] * phi[1]


def _conv_flops(
    images: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    weight: Sequence[int],
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    return 2 * images[0] * inputs[0] * outputs[0] * weight[0] * out_shape[2] * out_shape[3]
