"""The one place that sees the test images: networks that stand for a frontier, once, at the end."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from orchestrator.methods import method_class
from orchestrator.plan import Trial
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import DataOptions, Images, Splits, load_test_images, normalise
from testbed.measurement import multiplications_per_class
from testbed.method import load_pruned
from testbed.training import evaluate


@dataclass(frozen=True)
class FinalFigures:
    """What a network does with the test images of its data set."""

    accuracy: float
    """A fraction."""
    multiplications: float
    """Mean per image."""
    images: int
    """How many."""
    per_class: dict[str, dict[str, float]]
    """Class name -> layer -> mean multiplications of the class's test images."""


def final_figures(
    trial: Trial, splits: Splits, network: Path, data_root: Path, device: torch.device
) -> FinalFigures:
    """Has one trial's network see the test images of its data set.

    Args:
        splits: the trial's own, for the normalisation that its network was trained with.
        network: the file that the trial left.
    """
    dense = build_backbone(
        trial.backbone, splits.input_shape, splits.n_classes, **trial.backbone_options
    )
    method = method_class(trial.method).model_validate(trial.options)
    pruned = load_pruned(network, method, dense).to(device)
    images = _test_images(trial.data.model_dump_json(), data_root)
    precision = trial.training.precision
    cost = count_multiplications(pruned, normalise(images.pixels, splits.mean, splits.std))
    return FinalFigures(
        accuracy=evaluate(pruned, images, splits, device=device, precision=precision),
        multiplications=cost.multiplications,
        images=len(images),
        per_class=multiplications_per_class(cost, images.labels, splits.class_names),
    )


@lru_cache(maxsize=1)
def _test_images(data: str, root: Path) -> Images:
    """Read once in each process: the networks of a frontier mostly meet the same images."""
    return load_test_images(DataOptions.model_validate_json(data), root)
