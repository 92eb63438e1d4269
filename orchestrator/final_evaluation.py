"""The one place that sees the test images: the networks on the frontier, once, at the end."""

from pathlib import Path

from orchestrator.plan import Trial
from testbed.backbones import build_backbone
from testbed.data import Splits, load_test_images
from testbed.machine import default_device
from testbed.network_file import load_network
from testbed.training import evaluate


def test_accuracy(trial: Trial, splits: Splits, network: Path, data_root: Path) -> float:
    """The accuracy of one trial's network on the test images of its data set, a fraction.

    Args:
        splits: the trial's own, for the normalisation that its network was trained with.
        network: the file that the trial left.
    """
    dense = build_backbone(
        trial.backbone, splits.input_shape, splits.n_classes, **trial.backbone_options
    )
    images = load_test_images(trial.data, data_root)
    return evaluate(
        load_network(network, dense),
        images,
        splits,
        device=default_device(),
        precision=trial.training.precision,
    )
