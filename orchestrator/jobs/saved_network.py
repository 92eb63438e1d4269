"""A trial's network, from its file in the run folder."""

from pathlib import Path

from torch import nn

from orchestrator.jobs.dense import drawn
from orchestrator.methods import method_class
from orchestrator.plan import Trial
from testbed.data import Splits
from testbed.method import load_pruned


def saved_network(trial: Trial, splits: Splits, path: Path) -> nn.Module:
    """
    Args:
        splits: the trial's own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another trial.
    """
    method = method_class(trial.method).model_validate(trial.options)
    return load_pruned(path, method, drawn(trial, splits))
