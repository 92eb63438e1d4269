"""What MLflow has not got yet: a file a run, in the run folder, until MLflow has all of it.

A trial's file is written before its row of trials.csv, so that no trial with a row is missing from
MLflow in the end, whatever stops the driver in between.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.run_folder.atomic_files import write_atomically

FOLDER = "outbox"
_REPORT = "frontier"  # no trial's id: those end with a number


@dataclass(frozen=True)
class Letter:
    """One trial for MLflow."""

    row: dict[str, Any]
    reports: list[dict[str, float]]
    settings: dict[str, Any]
    digest: str
    """Of all that is in it: a run of the same digest is the same run."""


class Outbox:
    """The folder of what is to be sent."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run folder; nothing is made before there is something to keep."""
        self.path = folder / FOLDER

    def put(
        self,
        row: Mapping[str, Any],
        reports: Sequence[Mapping[str, float]],
        settings: Mapping[str, Any],
    ) -> None:
        """Keeps a trial, in place of what was kept of it before."""
        content = {"row": row, "reports": reports, "settings": settings}
        self.path.mkdir(exist_ok=True)
        text = json.dumps(content, default=_plain)
        write_atomically(self._of(row["trial_id"]), text.encode())

    def get(self, trial_id: str) -> Letter | None:
        """A trial that was kept; None where it has been sent since."""
        try:
            content = self._of(trial_id).read_bytes()
        except FileNotFoundError:
            return None
        return Letter(**json.loads(content), digest=hashlib.sha256(content).hexdigest()[:16])

    def sent(self, trial_id: str) -> None:
        """MLflow has the trial."""
        self._of(trial_id).unlink(missing_ok=True)

    def trials(self) -> list[str]:
        """The trials that are kept, by their ids."""
        return sorted({path.stem for path in self.path.glob("*.json")} - {_REPORT})

    def forget_but(self, trial_ids: Collection[str]) -> None:
        """Takes out what was kept of trials that have no row: they are run again."""
        for trial_id in self.trials():
            if trial_id not in trial_ids:
                self.sent(trial_id)

    @property
    def report_is_due(self) -> bool:
        """Whether MLflow lacks the report of the sweep as it is now."""
        return self._of(_REPORT).exists()

    @report_is_due.setter
    def report_is_due(self, due: bool) -> None:
        if due:
            self.path.mkdir(exist_ok=True)
            self._of(_REPORT).touch()
        else:
            self._of(_REPORT).unlink(missing_ok=True)

    def __len__(self) -> int:
        """How many runs MLflow lacks."""
        return len(self.trials()) + self.report_is_due

    def _of(self, name: str) -> Path:
        return self.path / f"{name}.json"


def _plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's."""
    return value.item()
