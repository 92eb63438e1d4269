"""Builds the operators for deciding per image: `python -m testbed.compiled`. Fails if it cannot."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from testbed.compiled import SOURCE, library_path

_TORCH = Path(torch.__file__).parent
# What torch means by the names of its CPU capabilities, to the compiler.
_FLAGS = {"AVX512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "AVX2": ["-march=x86-64-v3"]}


def build() -> Path:
    """Compiles the library and puts it where `operators` looks for it.

    Raises:
        RuntimeError: if there is no compiler, or it fails; says what it said.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    path = library_path()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [
            *compiler,
            *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp-simd"),
            *("-fno-math-errno", "-fno-trapping-math"),
            *_FLAGS.get(torch.backends.cpu.get_cpu_capability(), []),
            *(f"-isystem{_TORCH / 'include'}", str(SOURCE)),
            *(f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(built)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"Cannot run the C++ compiler {compiler[0]!r}: {error}") from error
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
        built.replace(path)
    return path


if __name__ == "__main__":
    try:
        print(f"Built {build().name}.")
    except RuntimeError as error:
        sys.exit(f"The operators for deciding are not built; torch's own are used. {error}")
