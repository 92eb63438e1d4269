"""Tensors in shared memory."""

import numpy as np
import torch
from tiny import splits

from orchestrator.tuning.zero_copy import pack, unpack


def test_what_is_unpacked_equals_what_was_packed() -> None:
    packed = splits()

    unpacked = unpack(pack(packed))

    assert torch.equal(unpacked.train.pixels, packed.train.pixels)
    assert torch.equal(unpacked.validation.labels, packed.validation.labels)
    assert (unpacked.class_names, unpacked.mean) == (packed.class_names, packed.mean)
    assert unpacked.fingerprint == packed.fingerprint


def test_tensors_are_read_from_the_packed_memory_itself() -> None:
    pickled, arrays = pack({"deep": [torch.arange(12).reshape(3, 4)], "part": torch.ones(9)[::2]})
    for array in arrays:
        array.setflags(write=False)  # as they come from Ray's memory; no warning either

    unpacked = unpack((pickled, arrays))

    memory = {array.ctypes.data for array in arrays}
    assert {unpacked["deep"][0].data_ptr(), unpacked["part"].data_ptr()} == memory
    assert unpacked["deep"][0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert unpacked["part"].tolist() == [1.0] * 5


def test_packing_copies_nothing_that_lies_in_one_piece() -> None:
    images = torch.zeros(8, 4, 4, 3, dtype=torch.uint8)

    _, [array] = pack(images)

    assert np.shares_memory(array, images.numpy())
