"""What all tests share."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from testbed import measurement

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


@pytest.fixture(autouse=True, scope="session")
def _latencies_are_measured_briefly() -> Iterator[None]:
    """Of the trials of this process, each of which would measure for 1.2 s."""
    with pytest.MonkeyPatch.context() as patch:
        brief = partial(measurement.measure_latency, seconds=0.01)
        patch.setattr(measurement, "measure_latency", brief)
        yield


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of this process write no report, which takes a second: for tests that look at none."""
    monkeypatch.setattr("orchestrator.report.write_report", lambda folder: None)


@pytest.fixture(autouse=True)
def _no_tracking_uri_is_left() -> Iterator[None]:
    """`mlflow.set_tracking_uri` leaves one in the environment, and later sweeps go elsewhere."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before


@pytest.fixture(scope="session")
def two_workers() -> Iterator[None]:
    """A Ray of two workers for all tests of this process; sweeps that run in it use it too."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        tests = Path(__file__).parent  # where workers find ray_jobs; its folders hide no room
        patch.setenv("PYTHONPATH", f"{tests.parent}{os.pathsep}{tests}")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def recipe() -> None:
    """The images and weights of `sweeps/own_network.yaml` are there."""
    from sweeps import own_network

    own_network.main()
