"""Nodes of a cluster that die cost their trials' last minutes, not the trials."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import WHOLE, DisturbedSweep, assert_whole

LOSSES = 5 if WHOLE else 1

pytestmark = pytest.mark.timeout(3600)


class Cluster:
    """A head that does no trials, and nodes of one core each, on loopback."""

    def __init__(self, sweep: DisturbedSweep) -> None:
        self._sweep = sweep
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self._ray("--head", "--port", port, "--num-cpus=0", "--include-dashboard=false")
        self._nodes: list[int] = []

    def add_node(self) -> None:
        before = self._raylets()
        self._ray(f"--address={self.address}", "--num-cpus=1")
        self._nodes.extend(self._raylets() - before)

    def lose_a_node(self) -> None:
        os.kill(self._nodes.pop(0), signal.SIGKILL)

    def _ray(self, *arguments: str) -> None:
        command = [Path(sys.executable).with_name("ray"), "start", *arguments]
        subprocess.run(
            [*command, "--node-ip-address=127.0.0.1", "--disable-usage-stats"],
            env=self._sweep.environment,
            check=True,
            capture_output=True,
        )

    def _raylets(self) -> set[int]:
        found = self._sweep.processes().items()
        return {process for process, command in found if "/raylet/raylet " in command}


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=6 * LOSSES)
    yield disturbed
    disturbed.kill_all()


def test_trials_of_lost_nodes_go_on_elsewhere(sweep: DisturbedSweep) -> None:
    cluster = Cluster(sweep)
    for _ in range(2):
        cluster.add_node()
    driver = sweep.start("--address", cluster.address)
    for loss in range(LOSSES):
        sweep.wait_for(4 * loss + 2, driver)
        time.sleep(0.3)
        cluster.lose_a_node()
        cluster.add_node()
    printed, _ = driver.communicate()
    assert driver.returncode == 0, printed
    assert_whole(sweep)
