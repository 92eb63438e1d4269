"""Objects with tensors in shared memory: written once, read by every process without a copy."""

import io
import pickle
import warnings
from typing import Any

import numpy as np
import torch

Packed = tuple[bytes, list[np.ndarray]]
"""What is no tensor, pickled, and the tensors' memory as (n_bytes,) uint8 arrays.

Ray keeps NumPy arrays in its object store as they are and gives readers the same memory, but
pickles a tensor byte by byte.
"""


def pack(content: Any) -> Packed:
    """`content` with its CPU tensors, at any depth, made buffers beside the pickle."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(content)
    return stream.getvalue(), [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]


def unpack(packed: Packed) -> Any:
    """What was packed. Its tensors lie in the packed arrays' memory: they are for reading only."""
    pickled, arrays = packed
    return pickle.loads(pickled, buffers=arrays)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            return _tensor, (value.detach().contiguous().numpy(),)
        return NotImplemented


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Torch has no read-only tensors and warns that this one could be written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
