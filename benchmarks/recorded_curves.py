"""Learning curves of real trials, recorded once: every epoch's accuracy and cost, and the end's.

python -m benchmarks.recorded_curves     # trains the sweep of benchmarks/curves/digits.yaml
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from optuna.storages import InMemoryStorage

from orchestrator.jobs.dense import obtain_dense
from orchestrator.methods import method_class
from orchestrator.plan import Trial, dense_network, studies
from orchestrator.run_folder.workplace import Workplace
from orchestrator.search.proposer import Proposer
from orchestrator.sweep_file import Resources, load_sweep
from testbed.cost import count_multiplications
from testbed.data import DataOptions, Splits, load_splits, normalise
from testbed.machine import set_threads, tune_malloc
from testbed.method import Judge, Run, judged_on
from testbed.training import DivergedError, evaluate

SWEEP_FILE = Path(__file__).parent / "curves" / "digits.yaml"
CURVES = SWEEP_FILE.with_suffix(".csv")
FIGURES = ["val_accuracy", "nonzero_multiplications", "dense_multiplications", "classes"]
CPU = torch.device("cpu")


def record() -> None:
    """Trains every trial to its end, on all cores."""
    sweep = load_sweep(SWEEP_FILE)
    proposer = Proposer(studies(sweep), sweep.objectives, sweep.search, InMemoryStorage())
    trials = list(iter(proposer.ask, None))
    with TemporaryDirectory() as name, ProcessPoolExecutor() as processes:
        curves = processes.map(partial(curve, folder=Path(name)), trials)
        rows = [row for rows in curves for row in rows]
    pd.DataFrame(rows)[["study", "trial_id", "epoch", *FIGURES]].to_csv(
        CURVES, index=False, float_format="%.6g"
    )


def curve(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for each epoch of the fine-tuning, and one, without an epoch, for the end.

    Of a trial that diverged there is no end.
    """
    set_threads(1)
    tune_malloc()
    workplace = Workplace(folder, folder / "dense", folder, Resources())
    splits = _splits(trial.data.model_dump_json(), trial.seed)
    dense, _ = obtain_dense(dense_network(trial), splits, workplace)
    rows: list[dict[str, Any]] = []

    def keep(epoch: int, figures: Mapping[str, float]) -> None:
        rows.append({"study": trial.study, "trial_id": trial.trial_id, "epoch": epoch, **figures})

    epochs = trial.fine_tuning.epochs
    run = Run(
        seed=trial.seed,
        device=CPU,
        training=trial.training,
        fine_tuning=trial.fine_tuning,
        judge=Judge(rungs=tuple(range(1, epochs + 1)), look=keep),
    )
    method = method_class(trial.method).model_validate(trial.options)
    try:
        network = method.prune(dense, splits, run)
    except (DivergedError, ValueError):
        return rows
    judged = judged_on(method, splits)
    images = normalise(judged.validation.pixels, judged.mean, judged.std)
    cost = count_multiplications(network, images)
    rows.append(
        {
            **rows[0],
            "epoch": None,
            "val_accuracy": evaluate(network, judged.validation, judged, device=CPU),
            "nonzero_multiplications": cost.nonzero_multiplications,
            "dense_multiplications": count_multiplications(dense, images[:1]).multiplications,
            "classes": splits.n_classes,
        }
    )
    return rows


@cache
def _splits(data: str, seed: int) -> Splits:
    return load_splits(DataOptions.model_validate_json(data), Path(), seed)
