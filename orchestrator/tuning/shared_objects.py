"""Objects that all jobs read: each node holds their tensors once, and no process copies them."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import ray
import torch

from testbed.images import read_only_tensor


class SharedObjects(Mapping[str, Any]):
    """Objects in Ray's store by their keys. No job may write to them."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Puts them there. Ray keeps NumPy arrays as they are but pickles a tensor byte by byte, so
        their CPU tensors go as arrays."""
        ray.util.register_serializer(torch.Tensor, serializer=_array, deserializer=read_only_tensor)
        try:
            self._references = {key: ray.put(content) for key, content in objects.items()}
        finally:
            ray.util.deregister_serializer(torch.Tensor)

    def __getitem__(self, key: str) -> Any:
        """
        Raises:
            RayError: if the object was lost with its node.
        """
        return _read(self._references[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


@cache
def _read(reference: ray.ObjectRef) -> Any:
    """Read once in each process, when it is first asked for."""
    return ray.get(reference)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
