"""A cascade of a sweep's own networks, built of their files and confirmed on test images."""

from pathlib import Path

import torch

from baselines.runtime.cascade_network import CascadeNetwork
from orchestrator.analysis.cascades import OwnCascade
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import paired_error
from orchestrator.deploy.selection import Choice
from orchestrator.jobs.final_test import on_test_images
from orchestrator.jobs.saved_network import saved_network
from orchestrator.plan import Trial
from orchestrator.run_folder.cascade_tests import CascadeTest
from orchestrator.run_folder.reader import past_trial
from testbed.data import Splits, load_splits

CPU = torch.device("cpu")


def built(
    result: SweepResult, cascade: OwnCascade, data_root: Path
) -> tuple[CascadeNetwork, list[Trial], Splits]:
    """The cascade, the trials that its networks are of, and what they were trained on.

    Raises:
        FileNotFoundError: if a network's file is missing.
        ValueError: if one is damaged, or the data set cannot be had.
    """
    (folder,) = result.folders
    trials = [past_trial(folder, result.trials, name) for name in cascade.networks]
    splits = load_splits(trials[0].data, data_root, trials[0].seed)
    networks = [saved_network(each, splits, _file(folder, each.trial_id)) for each in trials]
    network = CascadeNetwork(networks).eval()
    network.thresholds.copy_(torch.tensor(cascade.thresholds))
    # The mean of all looks so far, as the weight of each in the mean of it and what was before.
    network.weights.copy_(1 / torch.arange(1, network.looks + 1))
    return network, trials, splits


def confirmed(result: SweepResult, choice: Choice, data_root: Path) -> Choice:
    """The choice with what its cascade comes to on test images, which it meets once.

    The network alone that it was compared with meets them beside it. What is found is kept in the
    run folder. It changes nothing of what was chosen.

    Raises:
        FileNotFoundError, ValueError: as `built`.
    """
    own, (folder,) = choice.cascade, result.folders
    assert own is not None
    known = CascadeTest.read(folder, own.networks, own.thresholds, own.alone)
    if known is None:
        known = _tested(result, own, data_root)
        known.write(folder, own.networks, own.thresholds, own.alone)
    return choice._replace(test=known)


def _tested(result: SweepResult, own: OwnCascade, data_root: Path) -> CascadeTest:
    (folder,) = result.folders
    network, trials, splits = built(result, own, data_root)
    alone = past_trial(folder, result.trials, own.alone)
    beside = saved_network(alone, splits, _file(folder, own.alone))
    found, other = (
        on_test_images(each, trials[0], splits, data_root, CPU) for each in (network, beside)
    )
    right, others = found.correct.numpy(), other.correct.numpy()
    return CascadeTest(
        accuracy=float(right.mean()),
        multiplications=found.cost.multiplications,
        alone_accuracy=float(others.mean()),
        alone_multiplications=other.cost.multiplications,
        ahead=100 * float(right.mean() - others.mean()),
        error=paired_error(right, others),
        images=len(right),
    )


def _file(folder: Path, trial_id: str) -> Path:
    return folder / "networks" / f"{trial_id}.safetensors"
