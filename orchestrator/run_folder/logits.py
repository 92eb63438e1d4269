"""Logits of a trial's network, of the validation images that it was judged on, as float16.

`logits/TRIAL_ID.safetensors` has `logits`, (n, classes), and `labels`, (n,).
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.tensor_file import read_tensors, write_tensors

LARGEST = torch.finfo(torch.float16).max


def write_logits(path: Path, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Writes them. What float16 cannot hold is brought within its range."""
    kept = logits.clamp(-LARGEST, LARGEST).half()
    write_tensors(path, {"logits": kept, "labels": labels}, {})


def read_logits(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, classes) logits and (n,) labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    tensors, _ = read_tensors(path)
    return tensors["logits"].float().numpy(), tensors["labels"].numpy()
