"""Ray clusters for tests: nodes as processes of their own on the loopback device."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
PROJECT = Path(__file__).parents[1]


@dataclass
class Cluster:
    """A running cluster of one-core nodes."""

    address: str
    environment: dict[str, str]
    """For processes that join: the token, and where workers find modules."""
    folder: Path
    """For logs, and what Ray keeps of the head."""
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)

    def add_node(self) -> None:
        """Starts one node more, as by hand; the first is the head."""
        role = [f"--address={self.address}"]
        if not self.nodes:
            port = self.address.partition(":")[2]
            role = ["--head", f"--port={port}", "--include-dashboard=false"]
            role += [f"--temp-dir={self.folder}"]
        log = self.folder / f"node{len(self.nodes)}.log"
        with log.open("w") as output:
            node = subprocess.Popen(
                [
                    *(RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"),
                    *("--object-store-memory=200000000", *role),
                ],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.nodes.append(node)
        _wait_for(log, "Ray runtime started", node)

    def lose_node(self, number: int) -> None:
        """Kills a node's raylet, which takes the node's workers with it."""
        running = _processes(self.nodes[number].pid)
        (raylet,) = (process for process, command in running if "/raylet " in command)
        os.kill(raylet, signal.SIGKILL)


@contextmanager
def cluster(n_nodes: int) -> Iterator[Cluster]:
    """A cluster with a token, its nodes started as by hand; the first is the head."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: a socket's path has 107 characters
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = [str(PROJECT), str(PROJECT / "tests")]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_timeout_ms": "60000",  # a busy machine's nodes answer late
        "PYTHONPATH": os.pathsep.join(paths),
    }
    found = Cluster(address, environment, folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(lambda: [_end(node) for node in reversed(found.nodes)])
        for _ in range(n_nodes):
            found.add_node()
        yield found


def _wait_for(log: Path, words: str, node: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 120
    while words not in log.read_text():
        if node.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"The node did not start:\n{log.read_text()}")
        time.sleep(0.1)


def _end(node: subprocess.Popen[str]) -> None:
    """Ends a node with all its processes, which share its session."""
    node.terminate()  # it stops its processes itself
    try:
        node.wait(30)
    finally:
        for process, _ in _processes(node.pid):
            os.kill(process, signal.SIGKILL)


def _processes(session: int) -> list[tuple[int, str]]:
    """(process, command) of all that run in a session."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in table.stdout.splitlines()[1:]]
    return [(int(pid), command) for pid, sid, command in rows if int(sid) == session]
