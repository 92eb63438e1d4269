"""The columns of a trial's row that are known before it runs."""

import hashlib
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from orchestrator.plan import Trial


def known_columns(trial: Trial, started: datetime) -> dict[str, Any]:
    """The columns of a row that are known before the trial runs."""
    return {
        "trial_id": trial.trial_id,
        "phase": trial.phase,
        "confirms": trial.confirms,
        "method": trial.method,
        "dataset": trial.data.name,
        "backbone": trial.backbone,
        "depth": trial.backbone_options.get("depth"),
        "dropout": trial.backbone_options.get("dropout"),
        "seed": trial.seed,
        "cell": trial.cell,
        "study": trial.study,
        "fine_tuning_epochs": trial.fine_tuning.epochs,
        "started_at": started.isoformat(timespec="milliseconds"),
        "torch_version": torch.__version__,
        "code_version": code_version(),
        **{f"{trial.method}.{name}": value for name, value in trial.options.items()},
    }


@cache
def code_version() -> str:
    """A hash of this project's own sources, which says more than a commit that may be changed."""
    project = Path(__file__).parents[2]
    rooms = ("baselines", "orchestrator", "rnp", "testbed")
    files = (path for room in rooms for path in (project / room).rglob("*"))
    sources = sorted(path for path in files if path.suffix in (".py", ".cpp"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
