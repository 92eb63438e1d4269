"""A stage that trials share: not made for options that their method refuses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from baselines import Cascade
from orchestrator.jobs.trial import make_shared_stage
from orchestrator.plan import Trial
from orchestrator.run_folder.workplace import Workplace
from orchestrator.sweep_file import Resources
from testbed.data import DataOptions, load_splits
from testbed.training import Training, ignore


@pytest.mark.parametrize(("budget", "made"), [(0.2, 0), (0.8, 1)])
def test_no_stage_is_trained_for_a_trial_that_is_refused(
    budget: float, made: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[Cascade] = []

    def stage(self: Cascade, *_: Any) -> Mapping[str, Tensor]:
        stages.append(self)
        return {}

    monkeypatch.setattr(Cascade, "stage", stage)
    data = DataOptions(name="digits", train_images=300, validation_share=0.25)
    training = Training(epochs=1, batch_size=64)
    trial = Trial(
        trial_id="cascade",
        study="cascade",
        cell="all",
        method="cascade",
        options={"stages": (0.4, 0.7), "keep_multiplications": budget},
        data=data,
        backbone="conv",
        backbone_options={"depth": 4, "width": 0.25},
        training=training,
        fine_tuning=training,
        seed=0,
    )
    workplace = Workplace(tmp_path, tmp_path / "dense", tmp_path, Resources())
    make_shared_stage(trial, load_splits(data, tmp_path, seed=0), workplace, ignore)
    assert len(stages) == made
