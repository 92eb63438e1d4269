"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch

# Ray gives its workers the lowest priority but a few: beside another busy test they would start
# minutes late. Here they are what is waited for.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, as a trial has: the same rounding everywhere, and no fight for two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_tracking_uri_is_left() -> Iterator[None]:
    """`mlflow.set_tracking_uri` leaves one in the environment, and later sweeps go elsewhere."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
