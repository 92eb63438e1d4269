"""Jobs for the tests of the tuner: (name of a function here, *its arguments)."""

import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from orchestrator.plan.jobs import TellRung
from testbed.training import Report

Job = tuple[Any, ...]
Spell = tuple[int, float, float]
"""Which process did a job, and when it began and ended."""


def do(job: Job, shared: Mapping[str, Any], report: Report, tell_rung: TellRung) -> Any:
    name, *arguments = job
    if name == "count":
        return count(report, *arguments)
    if name == "read":
        return read(shared)
    if name == "climb":
        return climb(report, tell_rung, *arguments)
    return globals()[name](*arguments)


def give(value: Any) -> Any:
    return value


def own_process(number: int) -> int:
    return os.getpid()


def sleep(seconds: float, number: int = 0) -> Spell:
    began = time.time()
    time.sleep(seconds)
    return os.getpid(), began, time.time()


def meet(folder: str, number: int) -> Spell:
    """Waits until the job beside it has begun: 0 and 1, 2 and 3, ... run side by side."""
    began = time.time()
    Path(folder, str(number)).touch()
    while not Path(folder, str(number ^ 1)).exists() and time.time() < began + 300:
        time.sleep(0.05)
    return os.getpid(), began, time.time()


def see_gpus(folder: str, number: int) -> tuple[str | None, Spell]:
    process, began, _ = meet(folder, number)
    time.sleep(0.5)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), (process, began, time.time())


def count(report: Report, n: int, period_s: float) -> None:
    for number in range(n):
        report({"number": number, "process": os.getpid()})
        time.sleep(period_s)


def climb(report: Report, tell_rung: TellRung, value: float, n_rungs: int) -> str:
    """Comes to one rung after another with the same value."""
    for epochs in range(1, n_rungs + 1):
        report({"epoch": epochs})
        tell_rung(epochs, {"value": value, "cost": 1.0}, f"stopped at {epochs}")  # type: ignore[arg-type]
    return "at the top"


def fail() -> None:
    raise ValueError("no such luck")


def leave() -> None:
    sys.exit(3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_the_first(folder: str) -> int:
    """Kills its process, but for the second time."""
    return stay_the_first(folder, seconds=0)


def stay_the_first(folder: str, seconds: float) -> int:
    """Stays for so long and then kills its process, but for the second time."""
    first = Path(folder) / "first"
    if not first.exists():
        first.write_text(str(os.getpid()))
        time.sleep(seconds)
        kill()
    return os.getpid()


class Loaded:
    """Work that workers cannot load as often as the folder has files `fails`."""

    def __init__(self, folder: Path, driver: int) -> None:
        failing = sorted(folder.glob("fails*"))
        if failing and os.getpid() != driver:
            failing[0].unlink()
            __import__("no_such_module_on_the_node")
        self._loaded_with = folder, driver

    def __call__(self, *given: Any) -> Any:
        return do(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return Loaded, self._loaded_with


def lose_an_object() -> None:
    raise ray.exceptions.ObjectLostError("00" * 28, None, "")


def read(shared: Mapping[str, Any]) -> tuple[int, int, int]:
    """The process, the sum of the shared tensor, and by how many bytes reading it made it grow."""
    torch_is_warm = shared["small"]["pixels"].sum()  # its first sum takes memory of its own
    before = _own_bytes()
    total = int(shared["large"]["pixels"].sum()) + 0 * int(torch_is_warm)
    return os.getpid(), total, _own_bytes() - before


def _own_bytes() -> int:
    """Memory that this process shares with no other (Linux)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.MULTILINE)))
