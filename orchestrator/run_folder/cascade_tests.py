"""`cascades.csv`: what cascades of a sweep's own networks came to on test images, a row for each.

Whoever asks for a cascade a second time finds it here, so that it meets the test images once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import pandas as pd

from orchestrator.formatting import accuracy, millions
from orchestrator.run_folder.trials_table import cell_text, write_table

TABLE = "cascades.csv"


class CascadeTest(NamedTuple):
    """A cascade on test images, beside the network alone that it was compared with."""

    accuracy: float
    multiplications: float
    """Mean."""
    alone_accuracy: float
    alone_multiplications: float
    ahead: float
    """In points."""
    error: float
    """Its standard error, of the same images."""
    images: int

    def __str__(self) -> str:
        ahead = f"{abs(self.ahead):.1f} points {'ahead' if self.ahead >= 0 else 'behind'}"
        return (
            f"On {self.images:,} test images: accuracy {accuracy(self.accuracy)} with "
            f"{millions(self.multiplications)} multiplications in the mean, against "
            f"{accuracy(self.alone_accuracy)} with {millions(self.alone_multiplications)} of the "
            f"network alone ({ahead}, standard error {self.error:.1f})."
        )

    @classmethod
    def read(
        cls, folder: Path, networks: Sequence[str], thresholds: Sequence[float], alone: str
    ) -> Self | None:
        """What was written of a cascade; None of one that has met no test image."""
        path = folder / TABLE
        if not path.exists():
            return None
        named = _named(networks, thresholds, alone)
        table = pd.read_csv(path, dtype=dict.fromkeys(named, str))
        rows = table[(table[[*named]] == pd.Series(named)).all(axis=1)]
        return None if rows.empty else cls(*rows.iloc[0][[*cls._fields]])

    def write(
        self, folder: Path, networks: Sequence[str], thresholds: Sequence[float], alone: str
    ) -> None:
        """Adds a row."""
        row = pd.DataFrame([{**_named(networks, thresholds, alone), **self._asdict()}])
        path = folder / TABLE
        before = [pd.read_csv(path)] if path.exists() else []
        write_table(pd.concat([*before, row]), path)


def _named(networks: Sequence[str], thresholds: Sequence[float], alone: str) -> dict[str, str]:
    """The cells that tell a row from others."""
    return {
        "networks": cell_text(list(networks)),
        "thresholds": cell_text(list(thresholds)),
        "alone": alone,
    }
