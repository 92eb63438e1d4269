"""Where Optuna's studies are kept: a journal file in the run folder, or a database.

They are the only record of what was proposed and told. The journal is in the format of Optuna's
`JournalFileBackend`, whose lines are mended or refused when a sweep is resumed.
"""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from orchestrator.run_folder.atomic_files import append_whole


def open_journal(path: Path) -> JournalStorage:
    """The file of all studies of a sweep, made if there is none.

    A last line that was left unfinished, by a killed process or a full disk, is cut off.

    Raises:
        ValueError: if another line is damaged; names it.
    """
    if path.exists():
        _mend(path)
    return _JournalStorage(_Journal(path))


def open_database(url: str) -> BaseStorage:
    """The database at a URL of SQLAlchemy's, its tables made if there are none.

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        return RDBStorage(url)
    except Exception as error:  # of SQLAlchemy, of the database's driver, or that it is missing
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"storage: cannot open the database ({type(error).__name__}: {reason}). Expected a URL "
            "like postgresql+psycopg2://USER@HOST/DATABASE, or none for a file in the run folder."
        ) from error


class _JournalStorage(JournalStorage):
    """Optuna's storage, without its search for enqueued trials, of which a sweep has none.

    At every ask it would go through all trials: 4 ms more a trial, in the mean over 10,000.
    """

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):
            return []
        return super().get_all_trials(study_id, deepcopy, states)


class _Journal(JournalFileBackend):
    """Optuna's journal file without its lock and without waiting for the disk at every line.

    A trial of two options writes five lines: 7 ms with both, 1 ms like this. A sweep has one
    driver, which needs no lock. Rows of trials.csv that a machine's end took from the journal are
    told to it again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        append_whole(self._path, "".join(lines).encode())


def _mend(path: Path) -> None:
    """Leaves whole lines alone, and only such."""
    content = path.read_bytes()
    *lines, last = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not _is_entry(line):
            raise ValueError(
                f"{path}, line {number}: damaged, it is no entry of Optuna's journal. Put a copy "
                "of the file in its place, or move it away: trials.csv has all trials that ended, "
                "which are told to a new one."
            )
    if _is_entry(last):  # whole but for its line break
        append_whole(path, b"\n")
    elif last:
        with path.open("r+b") as file:
            file.truncate(len(content) - len(last))


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry
