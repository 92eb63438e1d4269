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
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)

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
    found = Cluster(address, environment)
    head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false"]
    head += [f"--temp-dir={folder}"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in range(n_nodes):
            role = head if number == 0 else [f"--address={address}"]
            command = [
                *(RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"),
                *("--object-store-memory=200000000", *role),
            ]
            with (folder / f"node{number}.log").open("w") as log:
                node = subprocess.Popen(
                    command,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            found.nodes.append(node)
            stack.callback(_end, node)
            _wait_for(folder / f"node{number}.log", "Ray runtime started", node)
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
