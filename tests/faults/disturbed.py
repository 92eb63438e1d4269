"""A sweep of real drivers in processes of their own, to be killed, and what it must come to."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from string import Template

import pandas as pd
from small_sweeps import write_images

from orchestrator.commands.sweep import main as sweep_main
from orchestrator.run_folder.trials_table import read_trials
from tests.faults.methods import PROCESS, STEP_S

PROJECT = Path(__file__).parents[2]
WHOLE = os.environ.get("FAULTS") == "whole"
"""Whether all faults are wanted (`make faults`), or one of each kind (`make test`)."""
SWEEP = Template("""
data: {name: $images, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 2, batch_size: 32}
fine_tuning: {epochs: 1, learning_rate: 0.01}
methods:
  dense: {}
  tests.faults.methods:Fades: {by: {uniform: [0.001, 0.1]}}
search: {sampler: $sampler, trials: $trials}
resources: {cpus: $cpus, threads: 1}
""")

Main = Callable[[Sequence[str]], int]
"""Of a command line: its arguments -> its exit status."""


class DisturbedSweep:
    """One sweep in a folder, and the processes of its drivers."""

    def __init__(
        self,
        folder: Path,
        sampler: str = "random",
        trials: int = 8,
        *,
        step_s: float = 0.2,
        workers: int = 2,
    ) -> None:
        """Writes the sweep file, its images, and how long a step takes.

        Args:
            workers: on a machine of two cores. Each takes seconds of computing to start.
        """
        self.path = folder / "sweep.yaml"
        self.pause = folder / STEP_S
        self.pause.write_text(str(step_s))
        images = folder / "images.npz"
        write_images(images)
        cpus = min(2 // workers, os.cpu_count() or 1)
        values = {"images": images, "sampler": sampler, "trials": trials, "cpus": cpus}
        self.path.write_text(SWEEP.substitute(values))
        self.n_trials = trials + 1
        self.folder = folder / "runs" / "sweep"
        self.mark = f"FAULTS_{uuid.uuid4().hex}"
        self.environment = {**os.environ, self.mark: "1", "OMP_NUM_THREADS": "1"}
        # After so long without its head, a node of Ray's ends; unless told, after a minute.
        self.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"
        self.over = threading.Event()
        """Set when the sweep that `run_disturbed` runs has ended."""
        self._ended, self._version = 0, (0, 0)

    def start(self, *arguments: str, module: str = "orchestrator.sweep") -> subprocess.Popen[str]:
        """A driver, leader of a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", module, self.path, "--output", self.folder.parent, *arguments],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, *arguments: str, main: Main = sweep_main) -> str:
        """Runs the sweep to its end without pauses, as nobody disturbs it; see `run_here`."""
        self.pause.unlink(missing_ok=True)
        return self.run_here(*arguments, main=main)

    def run_disturbed(self, disturb: Callable[[], None]) -> str:
        """Runs the sweep in this process while `disturb` runs beside it; see `run_here`."""
        self.over.clear()
        with ThreadPoolExecutor() as beside:
            disturbing = beside.submit(disturb)
            try:
                printed = self.run_here()
            finally:
                self.over.set()
            disturbing.result()
        return printed

    def run_here(self, *arguments: str, main: Main = sweep_main) -> str:
        """Runs the sweep to its end, which must be a good one, and returns what was printed.

        It does so in this process, on the Ray that it is connected to if it is.
        """
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            status = main([str(self.path), "--output", str(self.folder.parent), *arguments])
        assert status == 0, printed.getvalue()
        return printed.getvalue()

    def rows(self) -> pd.DataFrame:
        """What has ended, in the order of the trials."""
        rows = read_trials(self.folder / "trials.csv")
        return rows.sort_values("trial_id", ignore_index=True)

    def ended(self) -> int:
        """How many trials have, of those that need not run again; no table is read twice."""
        try:
            found = (self.folder / "trials.csv").stat()
        except FileNotFoundError:
            return 0
        if (version := (found.st_mtime_ns, found.st_size)) != self._version:
            self._ended = int((self.rows()["status"] != "stopped").sum())
            self._version = version
        return self._ended

    def wait_for(self, trials: int, driver: subprocess.Popen[str] | None = None) -> None:
        """Waits until so many trials have ended, or the driver has; without one, this process's."""
        while self.ended() < trials and not self.over.is_set():
            if driver is not None and driver.poll() is not None:
                break
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Process -> command of all that this sweep's drivers have started and that still runs."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended meanwhile
                continue
        return {process: command for process, command in found.items() if command}

    def workers(self) -> list[int]:
        """The processes that prune now."""
        files = (self.folder / "checkpoints").glob(f"*/{PROCESS}*")
        found = [int(file.name.removeprefix(PROCESS)) for file in files]
        return [process for process in found if Path(f"/proc/{process}").exists()]

    def wait_for_all_to_end(self, seconds: float = 120) -> dict[int, str]:
        """What still runs of this sweep after so long."""
        give_up = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < give_up:
            time.sleep(0.5)
        return left

    def kill_all(self) -> None:
        """Ends what is left, when a test is over."""
        for process in self.processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue


def figures(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without what two equal trials need not share: times, paths, tests of a frontier."""
    other = (
        "dataset",
        "latency_ms",
        "duration_s",
        "started_at",
        "test_accuracy",
        "test_multiplications",
    )
    return rows[[name for name in rows if not any(part in name for part in other)]]


def mlflow_runs(uri: str, sweep: str) -> Iterator[tuple[str, str]]:
    """(name, status) of every run that MLflow shows."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        yield run.info.run_name, run.info.status


def assert_whole(sweep: DisturbedSweep, uri: str | None = None) -> None:
    """Exactly the trials asked for are completed, each once, and MLflow holds each once."""
    rows = sweep.rows()
    assert list(rows["status"]) == ["completed"] * sweep.n_trials, rows[["trial_id", "error"]]
    expected = ["dense-s0-000", *(f"Fades-s0-{n:03d}" for n in range(sweep.n_trials - 1))]
    assert sorted(rows["trial_id"]) == sorted(expected)
    uri = uri or f"sqlite:///{sweep.folder.parent / 'mlflow.db'}"
    runs = sorted(mlflow_runs(uri, "sweep"))
    assert runs == sorted((name, "FINISHED") for name in [*expected, "frontier"])
    classes = (sweep.folder / "multiplications_per_class.csv").read_text().splitlines()
    assert len(set(classes)) == len(classes)
