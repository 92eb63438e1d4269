"""The one place that sees the test images: the networks on the frontier, once, at the end."""

from functools import lru_cache
from pathlib import Path

import torch

from orchestrator.plan import Trial
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Images, Splits, load_test_images
from testbed.network_file import load_network
from testbed.training import evaluate


def test_accuracy(
    trial: Trial, splits: Splits, network: Path, data_root: Path, device: torch.device
) -> float:
    """The accuracy of one trial's network on the test images of its data set, a fraction.

    Args:
        splits: the trial's own, for the normalisation that its network was trained with.
        network: the file that the trial left.
    """
    dense = build_backbone(
        trial.backbone, splits.input_shape, splits.n_classes, **trial.backbone_options
    )
    pruned = load_network(network, dense)
    images = _test_images(trial.data.model_dump_json(), data_root)
    return evaluate(pruned, images, splits, device=device, precision=trial.training.precision)


@lru_cache(maxsize=1)
def _test_images(data: str, root: Path) -> Images:
    """Read once in each process: the networks of a frontier mostly meet the same images."""
    return load_test_images(DataOptions.model_validate_json(data), root)
