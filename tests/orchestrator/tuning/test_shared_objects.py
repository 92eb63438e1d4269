"""Tensors in shared memory."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tiny import splits

from orchestrator.tuning import shared_objects
from orchestrator.tuning.shared_objects import SharedObjects
from testbed.data import load_splits

pytestmark = pytest.mark.usefixtures("two_workers")


def test_what_is_read_equals_what_was_put() -> None:
    put = splits()

    read = SharedObjects({"splits": put})["splits"]

    assert torch.equal(read.train.pixels, put.train.pixels)
    assert torch.equal(read.validation.labels, put.validation.labels)
    assert (read.class_names, read.mean) == (put.class_names, put.mean)
    assert read.fingerprint == put.fingerprint


def test_tensors_are_read_from_rays_memory_itself() -> None:
    deep, part = torch.arange(3 * 10**5).reshape(3, -1), torch.ones(10**6)[::2]
    objects = SharedObjects({"both": {"deep": [deep], "part": part}})

    first, second = (ray.get(objects._references["both"]) for _ in range(2))

    assert first["deep"][0].data_ptr() == second["deep"][0].data_ptr()
    assert first["part"].data_ptr() == second["part"].data_ptr()
    assert torch.equal(first["deep"][0], deep) and torch.equal(first["part"], part)


def test_an_object_is_read_once_in_a_process() -> None:
    objects = SharedObjects({"pixels": torch.ones(4)})

    assert objects["pixels"] is objects["pixels"]
    assert list(objects) == ["pixels"] and len(objects) == 1


def test_putting_copies_no_tensor_that_lies_in_one_piece() -> None:
    images = torch.zeros(8, 4, 4, 3, dtype=torch.uint8)

    assert np.shares_memory(shared_objects._array(images), images.numpy())


def test_tensors_go_another_way_only_there() -> None:
    """Elsewhere Ray's own: a tensor that is read can be written to."""
    SharedObjects({"pixels": torch.ones(4)})
    tensor = ray.get(ray.put(torch.ones(10**6)))

    tensor += 1
    assert tensor[0] == 2


def test_shared_splits_lie_channels_last() -> None:
    """As they were loaded: so convolutions read them without a copy."""
    loaded = load_splits("digits", Path(), seed=0)

    read = SharedObjects({"splits": loaded})["splits"]

    assert read.train.pixels.stride() == loaded.train.pixels.stride()
    assert read.train.pixels.is_contiguous(memory_format=torch.channels_last)
