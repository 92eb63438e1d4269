"""A tracking server that goes and comes back has every trial once in the end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import WHOLE, DisturbedSweep, assert_whole

from orchestrator.tracking import tracker

KILLS = 3 if WHOLE else 1

pytestmark = pytest.mark.timeout(3600)


class Server:
    """`mlflow server` on loopback, its database in a file."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                "--port", str(self._port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}",
                "--artifacts-destination", str(self._folder / "artifacts"),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # 8 processes more
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while not self._answers():
            assert self._process.poll() is None
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    started.start()
    yield started
    started.kill()


@pytest.mark.usefixtures("two_workers")
def test_a_tracking_server_that_is_killed_has_each_trial_once_in_the_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(tracker, "PATIENCE_S", 5.0)
    sweep = DisturbedSweep(tmp_path, trials=4 * KILLS, workers=1)

    def disturb() -> None:
        for kill in range(KILLS):
            sweep.wait_for(4 * kill + 1)
            server.kill()
            sweep.wait_for(4 * kill + 3)
            if kill < KILLS - 1:
                server.start()

    printed = sweep.run_disturbed(disturb)  # the server is away at its end
    assert "The trials go on" in printed
    assert "the same command sends them" in printed
    server.start()
    sweep.finish()
    assert_whole(sweep, server.uri)
