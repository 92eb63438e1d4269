"""Final tests: the one place that sees the test images, for networks on a Pareto front, once."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from orchestrator.jobs.saved_network import saved_network
from orchestrator.plan import Trial
from orchestrator.plan.jobs import TestResult
from orchestrator.run_folder.workplace import Workplace
from testbed.cost import Cost, count_multiplications
from testbed.data import DataOptions, Images, Splits, load_test_images
from testbed.measurement import multiplications_per_class
from testbed.prediction import predict


def final_test(trial: Trial, splits: Splits, workplace: Workplace) -> TestResult:
    """Has one trial's network see the test images of its data set.

    Args:
        splits: the trial's own, for the normalisation that its network was trained with.
    """
    pruned = saved_network(trial, splits, workplace.network(trial.trial_id))
    found = on_test_images(pruned, trial, splits, workplace.data_root, workplace.device)
    return TestResult(
        accuracy=found.correct.double().mean().item(),
        multiplications=found.cost.multiplications,
        images=len(found.labels),
        per_class=multiplications_per_class(found.cost, found.labels, splits.class_names),
    )


class OnTestImages(NamedTuple):
    """What a network does on the test images."""

    correct: Tensor
    """(n,) bool: which it classifies right."""
    cost: Cost
    labels: Tensor
    """(n,)."""


def on_test_images(
    network: nn.Module, trial: Trial, splits: Splits, data_root: Path, device: torch.device
) -> OnTestImages:
    """Has a network see the test images of a trial's data set.

    Args:
        network: ends on `device`.
        splits: as for `final_test`.
    """
    images = _test_images(trial.data.model_dump_json(), data_root)
    cost = count_multiplications(network.to(device), splits.normalised(images))
    precision = trial.training.precision
    logits = predict(network, images, splits, device=device, precision=precision)
    labels = images.labels.cpu()
    return OnTestImages(logits.argmax(dim=1) == labels, cost, labels)


@lru_cache(maxsize=1)
def _test_images(data: str, root: Path) -> Images:
    """Read once in each process: the networks of a frontier mostly meet the same images."""
    return load_test_images(DataOptions.model_validate_json(data), root)
