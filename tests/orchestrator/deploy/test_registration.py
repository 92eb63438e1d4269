"""Which of an exported network's programs MLflow's registry gets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from orchestrator.deploy.registration import register


@pytest.mark.parametrize(
    ("programs", "expected"),
    [(["model.onnx"], "model.onnx"), (["model.onnx", "model_batch.onnx"], "model_batch.onnx")],
)
def test_the_program_for_batches_is_registered_where_there_is_one(
    programs: list[str], expected: str, tmp_path: Path
) -> None:
    class Models:
        def register(self, exported: Path, program: Path, *_: Any) -> str:
            assert exported == tmp_path and program == tmp_path / expected
            return "1"

    for name in programs:
        (tmp_path / name).touch()
    result: Any = SimpleNamespace(by_id=pd.DataFrame({"method": {"a": "rnp"}}), sweep={"name": "s"})
    for name in ("trial_id", "val_accuracy", "test_accuracy", "multiplications", "parameters"):
        result.by_id[name] = 0
    result.by_id[["dense_multiplications", "latency_ms"]] = 0
    choice: Any = SimpleNamespace(network="a", cascade=None, test=None, why="why")
    assert register(Models(), tmp_path, result, choice) == "1"  # type: ignore[arg-type]
