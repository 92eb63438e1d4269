"""A sweep's run folder: who may write to it, which sweep may resume it, how it is begun."""

import fcntl
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from orchestrator.plan import make_plan
from orchestrator.plan.resume import changes
from orchestrator.run_folder.atomic_files import write_atomically
from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep
from testbed.weights import file_digest

SWEEP_FILE, SWEEP_ID = "sweep.yaml", "sweep_id"
WEIGHTS = "weights.sha256"  # a line for each file that networks start from, as sha256sum writes
REPORT = ("frontier.csv", "frontier.png", "frontier.html", "report.md", "report.html")
TWO_WAYS_ON = (
    "Give this sweep another name with --set name=..., or start afresh with --fresh, which moves "
    "the old folder aside and deletes nothing."
)


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Keeps every other driver out of a run folder, which need not exist yet.

    The kernel lets the next one in however this process ends.

    Raises:
        SweepFileError: if another driver is in it; names its host and process.
    """
    path = folder.parent / f".{folder.name}.driver.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SweepFileError(
                [
                    f"{folder} is being written by {file.read().strip() or 'another process'}. "
                    "Wait for its end, stop it and run this again (what it has done stays), or "
                    "give this sweep another name with --set name=..."
                ]
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_resumable(folder: Path, sweep: Sweep) -> None:
    """Checks that a sweep may resume a folder that is there.

    Raises:
        SweepFileError: if the folder is of another sweep, or of none.
    """
    try:
        before = load_sweep(folder / SWEEP_FILE)
    except SweepFileError as error:
        reason = "it has no sweep.yaml"
        if (folder / SWEEP_FILE).exists():
            reason = f"its sweep.yaml cannot be read: {error}"
        problem = f"{folder} is there, and cannot be resumed: {reason}."
        raise SweepFileError([problem, TWO_WAYS_ON]) from error
    found = [*changes(make_plan(before), make_plan(sweep)), *_changed_weights(folder, sweep)]
    if found:
        problem = f"{folder} was begun by a sweep file that has changed since:"
        raise SweepFileError([problem, *(f"  {text}" for text in found), TWO_WAYS_ON])


def begin(folder: Path, sweep: Sweep) -> None:
    """Makes a run folder, there whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a driver that was killed right here
    unfinished.mkdir(parents=True)
    write_atomically(unfinished / SWEEP_FILE, sweep.dump().encode())
    write_atomically(unfinished / SWEEP_ID, uuid.uuid4().hex.encode())
    _note_weights(unfinished, sweep)
    unfinished.rename(folder)


def note_sweep(folder: Path, sweep: Sweep) -> None:
    """Notes what the sweep is from now on: it may have more trials than before."""
    path, text = folder / SWEEP_FILE, sweep.dump().encode()
    if path.read_bytes() != text:
        write_atomically(path, text)
    _note_weights(folder, sweep)


def _weights_now(sweep: Sweep) -> dict[str, str]:
    """The files of weights that a sweep names -> the hashes of those that are there."""
    distillations = (sweep.training.get("distillation"), sweep.fine_tuning.get("distillation"))
    teachers = [each["teacher"] for each in distillations if isinstance(each, dict)]
    named = [options.get("weights") for options in (sweep.backbone, *teachers)]
    files = [file for value in named for file in getattr(value, "values", (value,))]
    there = [file for file in files if isinstance(file, str) and Path(file).is_file()]
    return {file: file_digest(Path(file)) for file in there}


def _weights_noted(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {file: noted for noted, _, file in (line.partition("  ") for line in lines)}


def _note_weights(folder: Path, sweep: Sweep) -> None:
    """Notes the hashes of files that are not noted yet."""
    noted = _weights_noted(folder)
    every = {**_weights_now(sweep), **noted}
    if every.keys() != noted.keys():
        lines = [f"{digest}  {file}\n" for file, digest in sorted(every.items())]
        write_atomically(folder / WEIGHTS, "".join(lines).encode())


def _changed_weights(folder: Path, sweep: Sweep) -> list[str]:
    noted = _weights_noted(folder)
    return [
        f"the file {file} has other content: sha256 {noted[file][:12]}, and now {now[:12]}."
        for file, now in _weights_now(sweep).items()
        if noted.get(file, now) != now
    ]


def digest(folder: Path) -> str:
    """Tells the trials and the sweep file as they are now from all others."""
    content = (folder / SWEEP_FILE).read_bytes() + (folder / "trials.csv").read_bytes()
    return hashlib.sha256(content).hexdigest()


def report_is_current(folder: Path) -> bool:
    """Whether the report is whole, and of the trials and the sweep file as they are now."""
    if not all((folder / name).exists() for name in (*REPORT, "trials.csv")):
        return False
    return digest(folder) in (folder / "report.html").read_text(encoding="utf-8")


def sweep_id(folder: Path) -> str:
    """What tells a folder's sweep from others of its name, in MLflow and in a database."""
    path = folder / SWEEP_ID
    if not path.exists():  # the folder is older than sweeps that are resumed
        write_atomically(path, uuid.uuid4().hex.encode())
    return path.read_text()


def move_aside(folder: Path) -> Path:
    """Gives a run folder another name, and returns that."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    aside, number = folder.with_name(f"{folder.name}.{stamp}"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.{stamp}-{number}")
    folder.rename(aside)
    return aside
