"""What the tests of tracking share."""

import shutil
from pathlib import Path

import pytest
from tracked_sweep import SWEEP

from orchestrator.plan import make_plan
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.experiment import Experiment


@pytest.fixture(scope="session")
def first_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs, with the database that another sweep has made."""
    output = tmp_path_factory.mktemp("runs")
    (output / "sweep.yaml").write_text(SWEEP)
    (output / "sweep").mkdir()
    plan = make_plan(load_sweep(output / "sweep.yaml", ["name=first"]))
    Experiment(plan, output / "sweep", f"sqlite:///{output / 'mlflow.db'}")
    return output


@pytest.fixture
def output(first_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs, with an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(first_sweep / "mlflow.db", tmp_path)
    (tmp_path / "sweep").mkdir()
    for folder in (tmp_path, tmp_path / "sweep"):
        shutil.copy(first_sweep / "sweep.yaml", folder)
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.05)
    return tmp_path
