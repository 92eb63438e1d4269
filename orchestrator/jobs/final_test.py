"""Final tests: the one place that sees the test images, for networks on a Pareto front, once."""

from functools import lru_cache
from pathlib import Path

from orchestrator.jobs.dense import drawn
from orchestrator.methods import method_class
from orchestrator.plan import Trial
from orchestrator.plan.jobs import TestResult
from orchestrator.run_folder.workplace import Workplace
from testbed.cost import count_multiplications
from testbed.data import DataOptions, Images, Splits, load_test_images
from testbed.measurement import multiplications_per_class
from testbed.method import load_pruned
from testbed.training import evaluate


def final_test(trial: Trial, splits: Splits, workplace: Workplace) -> TestResult:
    """Has one trial's network see the test images of its data set.

    Args:
        splits: the trial's own, for the normalisation that its network was trained with.
    """
    method = method_class(trial.method).model_validate(trial.options)
    pruned = load_pruned(workplace.network(trial.trial_id), method, drawn(trial, splits))
    pruned = pruned.to(workplace.device)
    images = _test_images(trial.data.model_dump_json(), workplace.data_root)
    precision = trial.training.precision
    cost = count_multiplications(pruned, splits.normalised(images))
    return TestResult(
        accuracy=evaluate(pruned, images, splits, device=workplace.device, precision=precision),
        multiplications=cost.multiplications,
        images=len(images),
        per_class=multiplications_per_class(cost, images.labels, splits.class_names),
    )


@lru_cache(maxsize=1)
def _test_images(data: str, root: Path) -> Images:
    """Read once in each process: the networks of a frontier mostly meet the same images."""
    return load_test_images(DataOptions.model_validate_json(data), root)
