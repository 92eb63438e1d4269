"""Weights of products: which parameter an operand lies in, be it a view of it or a cast."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Weights:
    """Finds tensors by their memory."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """`state`: parameters and buffers by name, in memory of their own."""
        self._of: dict[Any, tuple[str, Tensor]] = {
            _memory(tensor): (name, tensor) for name, tensor in state.items()
        }
        self._casts: dict[Any, tuple[Tensor, Tensor]] = {}  # holds them: memory is used again

    def dimension(self, operand: Tensor, dim: int) -> tuple[str, int] | None:
        """The parameter that `operand` is a view of, and its dimension that `dim` is."""
        name, tensor = self._of.get(_memory(operand), (None, operand))
        if name is not None:
            for place, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
                if size > 1 and step == operand.stride(dim):
                    return name, place
        return None

    def note_cast(self, source: Tensor, cast: Tensor) -> None:
        """`cast` holds the same numbers as `source`, in another type (autocast makes such)."""
        if _memory(source) in self._of and source.stride() == cast.stride():
            self._casts[_memory(cast)] = source, cast

    def found(self, operand: Tensor) -> tuple[str, Tensor] | None:
        """The parameter that `operand` or what it was cast from is a view of, and that view."""
        if _memory(operand) in self._casts:
            source, cast = self._casts[_memory(operand)]
            offset = operand.storage_offset() - cast.storage_offset() + source.storage_offset()
            operand = source.as_strided(operand.shape, operand.stride(), offset)
        if _memory(operand) not in self._of:
            return None
        return self._of[_memory(operand)][0], operand


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
