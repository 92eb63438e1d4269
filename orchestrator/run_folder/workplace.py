"""The workplace of a sweep's jobs: where they find and leave their files, and what each may use."""

from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.sweep_file import Resources


@dataclass(frozen=True)
class Workplace:
    """Where jobs find and leave their files."""

    folder: Path
    """The run folder."""
    dense: Path
    """Trained dense networks, which all sweeps share."""
    data_root: Path
    """Where data sets lie."""
    resources: Resources
    """Of one job."""

    @property
    def device(self) -> torch.device:
        """What a job computes on."""
        return torch.device("cuda" if self.resources.gpus else "cpu")

    def network(self, trial_id: str) -> Path:
        """Where a trial leaves its network."""
        return self.folder / "networks" / f"{trial_id}.safetensors"

    def logits(self, trial_id: str) -> Path:
        """Where a trial leaves its network's logits of the validation images."""
        return self.folder / "logits" / f"{trial_id}.safetensors"

    def reports(self, trial_id: str) -> Path:
        """Where a trial leaves what it reported."""
        return self.folder / "reports" / f"{trial_id}.jsonl"

    def checkpoints(self, trial_id: str) -> Path:
        """The folder of what a trial resumes from."""
        return self.folder / "checkpoints" / trial_id
