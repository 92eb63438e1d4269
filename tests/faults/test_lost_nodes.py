"""Nodes of a cluster that die cost their trials' last minutes, not the trials."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import WHOLE, DisturbedSweep, assert_whole
from ray_cluster import cluster

LOSSES = 5

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not WHOLE, reason="`make faults`; test_cluster.py loses one node"),
]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[DisturbedSweep]:
    disturbed = DisturbedSweep(tmp_path, trials=6 * LOSSES)
    yield disturbed
    disturbed.kill_all()


def test_trials_of_lost_nodes_go_on_elsewhere(sweep: DisturbedSweep) -> None:
    with cluster(1 + LOSSES) as nodes:
        sweep.environment |= nodes.environment
        driver = sweep.start("--address", nodes.address)
        for loss in range(LOSSES):
            sweep.wait_for(4 * loss + 2, driver)
            time.sleep(0.3)
            nodes.lose_node(1 + loss)  # the first is the head
        printed, _ = driver.communicate()
        assert driver.returncode == 0, printed
        assert_whole(sweep)
