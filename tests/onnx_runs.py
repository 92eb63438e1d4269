"""ONNX programs as ONNX Runtime runs them, and what it ran."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx


def run(program: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """Answers to images, one after the other where the program takes one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        program.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    single = session.get_inputs()[0].shape[0] == 1
    batches = np.split(pixels, len(pixels)) if single else [pixels]
    return np.concatenate([session.run(["logits"], {"images": each})[0] for each in batches])


def convs_run(program: onnx.ModelProto, pixels: np.ndarray, folder: Path) -> int:
    """How many convs ONNX Runtime ran, as its profile says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(["logits"], {"images": pixels})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    counted = Counter(e["args"]["op_name"] for e in kernels)
    return sum(n for name, n in counted.items() if "Conv" in name)
