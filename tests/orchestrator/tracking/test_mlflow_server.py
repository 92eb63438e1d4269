"""A sweep whose runs go to a real MLflow server, which keeps them in a real PostgreSQL."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from tracked_sweep import NO_COMPARISON, SWEEP, row, tracked, write_report_files

from orchestrator.run_folder.trial_files import write_reports
from orchestrator.run_folder.trials_table import TrialsTable, table_columns


def postgresql() -> Path | None:
    """The folder of PostgreSQL's programs: Debian has them in none of PATH's."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # at SIGTERM PostgreSQL waits for its clients to leave
        process.wait(60)


@contextmanager
def database(programs: Path) -> Iterator[str]:
    """A new database of a new PostgreSQL, which refuses to run as root: its URL."""
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    as_user: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        ids = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}")
        as_user = ["setpriv", *ids, "--clear-groups", "--"]
    data, at = str(folder / "data"), ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
    make = [*as_user, str(programs / "initdb"), "-D", data, "-U", "mlflow", "--auth=trust"]
    serve = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", str(folder)]
    try:
        subprocess.run(make, check=True, capture_output=True, cwd=folder)
        with running([*as_user, *serve, "-h", "127.0.0.1", "-F"], folder / "log") as server:
            give_up = time.monotonic() + 120
            while subprocess.run([programs / "pg_isready", *at], capture_output=True).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < give_up
                time.sleep(0.2)
            subprocess.run([programs / "createdb", *at, "mlflow"], check=True)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(backend: str, folder: Path) -> Iterator[str]:
    """An MLflow server: its URL."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port)]
    command += ["--workers", "1"]
    # Its job execution would be eight processes more.
    with running(command, log, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as server:
        give_up = time.monotonic() + 240
        while not healthy(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.5)
        yield url


def healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.read() == b"OK")
    except (URLError, OSError):
        return False


@pytest.mark.skipif(postgresql() is None, reason="PostgreSQL's initdb is not installed")
def test_a_server_on_postgresql_holds_every_trial_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a sweep tells MLflow; that a sweep tells a server, the faults' tests show."""
    programs = postgresql()
    assert programs is not None
    folder = tmp_path / "sweep"
    folder.mkdir()
    for each in (tmp_path, folder):
        (each / "sweep.yaml").write_text(SWEEP)
    write_report_files(folder)
    reports = [{"epoch": epoch, "val_accuracy": epoch / 8} for epoch in (1, 2, 3)]
    write_reports(folder / "reports" / "t-0.jsonl", reports)
    rows = [row(f"t-{n}", val_accuracy=0.7 + n / 100) for n in range(3)]
    table = TrialsTable(folder / "trials.csv", [*table_columns({}), "l1_filter.keep_ratio"])
    with database(programs) as backend, mlflow_server(backend, tmp_path) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with tracked(tmp_path) as tracker:
            for each in rows:
                table.append(each)
                tracker.send(each)
            tracker.finish(NO_COMPARISON)
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("sweep")
        assert experiment is not None
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        report = {file.path for file in client.list_artifacts(runs["frontier"].info.run_id)}
        history = client.get_metric_history(runs["t-0"].info.run_id, "val_accuracy")
        url_of_psql = backend.replace("+psycopg2", "")
        query = [programs / "psql", url_of_psql, "-t", "-c", "select count(*) from runs"]
        counted = subprocess.run(query, check=True, capture_output=True, text=True)

    assert runs.keys() == {"t-0", "t-1", "t-2", "frontier"}
    for each in rows:
        assert runs[each["trial_id"]].data.metrics["val_accuracy"] == each["val_accuracy"]
    assert [entry.value for entry in history] == [1 / 8, 2 / 8, 3 / 8, 0.7]
    assert {"report.html", "frontier.csv"} <= report
    assert int(counted.stdout) == len(rows) + 1
    assert not (tmp_path / "mlflow.db").exists()
