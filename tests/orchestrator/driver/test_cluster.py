"""Sweeps on a Ray cluster of two nodes, which are processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_cluster import PROJECT, Cluster, cluster
from safetensors.torch import load_file
from small_sweeps import write_images

from orchestrator.run_folder.trials_table import read_trials

SWEEP = """
data: {name: IMAGES, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 1, batch_size: 64}
methods:
  tests.tiny_methods:Steps: {steps: 30, seconds: {grid: [0.2, 0.21]}, together: 2}
"""
N_STEPS = 30


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster(2) as found:
        yield found


def sweep(found: Cluster, folder: Path, **environment: str) -> subprocess.Popen[str]:
    path = folder / "steps.yaml"
    write_images(folder / "images.npz")
    path.write_text(SWEEP.replace("IMAGES", str(folder / "images.npz")))
    command = [sys.executable, "-m", "orchestrator.sweep", str(path), "--address", found.address]
    return subprocess.Popen(
        [*command, "--output", str(folder / "runs")],
        cwd=PROJECT,
        env={**found.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


READ = """
import json, sys, torch
from orchestrator.tuning.connection import connected
from tests.job_source import Jobs, fit, until

n_bytes = 64 * 2**20
shared = {
    name: {"pixels": torch.ones(n, dtype=torch.uint8)}
    for name, n in (("small", 2**20), ("large", n_bytes))
}
jobs = Jobs(until(lambda: len(jobs.processes()) == 2, lambda number: ("read", number)))
with connected(sys.argv[1]):
    fit(jobs, shared=shared)
read = {process: (total == n_bytes, growth / n_bytes) for process, total, growth in
        jobs.ended.values()}
print(json.dumps(list(read.values())))
"""


def test_each_node_reads_the_data_without_a_copy_for_its_workers(two_nodes: Cluster) -> None:
    """Two processes have read them, and no node has a core for a second one."""
    driver = subprocess.run(
        [sys.executable, "-c", READ, two_nodes.address],
        env=two_nodes.environment,
        capture_output=True,
        text=True,
    )
    assert driver.returncode == 0, driver.stderr
    read = json.loads(driver.stdout)
    assert [whole for whole, _ in read] == [True, True]
    assert max(growth for _, growth in read) < 1 / 8


def test_without_the_token_a_sweep_is_refused(two_nodes: Cluster, tmp_path: Path) -> None:
    driver = sweep(two_nodes, tmp_path, RAY_AUTH_TOKEN="0" * 64)

    output, _ = driver.communicate()

    assert driver.returncode == 2, output
    assert "RAY_AUTH_TOKEN" in output
    assert not (tmp_path / "runs" / "steps").exists()


def test_trials_outlive_their_processes_and_their_node_and_use_one_that_comes(
    two_nodes: Cluster, tmp_path: Path
) -> None:
    driver = sweep(two_nodes, tmp_path)
    folder = tmp_path / "runs" / "steps"

    def steps() -> dict[str, list[list[str]]]:
        """Of each trial: [number, process, node] of every step that was kept."""
        return {
            path.stem: [line.split() for line in path.read_text().splitlines()]
            for path in (folder / "steps").glob("*.txt")
        }

    def until(done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 240
        while not done():
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < give_up, steps()
            time.sleep(0.1)

    with driver:
        until(lambda: len(steps()) == 2 and all(len(taken) >= 2 for taken in steps().values()))
        assert len({taken[0][2] for taken in steps().values()}) == 2, "a trial on each node"
        workers = {int(taken[-1][1]) for taken in steps().values()}
        two_nodes.lose_node(1)
        until(lambda: not all(map(is_alive, workers)))
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)
        two_nodes.add_node()
        output, _ = driver.communicate()

    assert driver.returncode == 0, output
    rows = read_trials(folder / "trials.csv")
    assert list(rows["status"]) == ["completed"] * 2
    (dense,) = (load_file(path) for path in (tmp_path / "runs" / "dense").glob("*.safetensors"))
    for trial_id, taken in steps().items():
        assert {int(number) for number, _, _ in taken} == set(range(N_STEPS))
        assert len(taken) <= N_STEPS + 1, "again at most the one that had no checkpoint yet"
        weights = load_file(folder / "networks" / f"{trial_id}.safetensors")
        added = max(float((weights[name] - dense[name]).abs().max()) for name in dense)
        assert added == pytest.approx(N_STEPS, abs=1e-3), "and each step's work once"
        assert f"{trial_id} resumes in another process. The worker process" in output
        assert len({process for _, process, _ in taken}) == 2, "two processes took part"
    before, after = ({taken[at][2] for taken in steps().values()} for at in (0, -1))
    assert len(after - before) == 1, "the node that came has a trial"


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    status = Path(f"/proc/{process}/status")
    try:
        return "\nState:\tZ" not in status.read_text()
    except FileNotFoundError:
        return False
