"""The kinds of work of a sweep: train a dense network, run a trial to its row, test a network.

A job runs in any process: a worker of Ray's, or the only one there is.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.formatting import error_text
from orchestrator.jobs.final_test import FinalFigures, final_figures
from orchestrator.methods import method_class
from orchestrator.plan import DenseNetwork, Trial, dense_network, fine_tuning_teacher
from orchestrator.run_folder.atomic_files import FULL_DISK
from orchestrator.run_folder.trial_files import write_extremes, write_reports
from orchestrator.run_folder.trials_table import COLUMNS
from orchestrator.search.rungs import Rungs, StoppedEarlyError
from orchestrator.sweep_file import Resources
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.machine import best_precision, set_threads, tune_malloc
from testbed.measurement import Measurement, measure, multiplications_per_class
from testbed.method import Judge, Run, judged_on
from testbed.network_file import save_network
from testbed.training import Report, evaluate, ignore, train


@dataclass(frozen=True)
class FrontierTest:
    """A trial's network is to meet the test images."""

    trial: Trial


Job = DenseNetwork | Trial | FrontierTest

# Passes of images that no method's budget of epochs counts, by what reports call them.
PASSES = ("q_learning_epochs", "reward_epochs")
BEFORE = "val_accuracy_before_finetuning"


@dataclass(frozen=True)
class TrialResult:
    """What a trial hands to the driver."""

    row: dict[str, Any]
    """One row of trials.csv."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class name -> layer -> mean multiplications of the class's validation images."""
    images: tuple[list[str], list[bool], list[int]] | None = None
    """Of a network that decides per image: class, correct and multiplications of each one."""
    warnings: tuple[str, ...] = ()
    """What was worth a warning on the way: a damaged file, say."""


@dataclass(frozen=True)
class DenseIsThere:
    """What the job of a dense network hands to the driver: the network itself is in the store."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiskIsFull:
    """In place of what a job returns: no fault of the job's, and no other could do better."""

    errno: int
    text: str


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
    rungs: Rungs | None = None
    """Where trials are stopped early."""

    @property
    def device(self) -> torch.device:
        """What a job computes on."""
        return torch.device("cuda" if self.resources.gpus else "cpu")

    def network(self, trial_id: str) -> Path:
        """Where a trial leaves its network."""
        return self.folder / "networks" / f"{trial_id}.safetensors"

    def checkpoints(self, trial_id: str) -> Path:
        """The folder of what a trial goes on from, should it be stopped."""
        return self.folder / "checkpoints" / trial_id


def job_name(job: Job) -> str:
    """A job's name: a trial's is its id."""
    if isinstance(job, DenseNetwork):
        given = {k: v for k, v in job.backbone_options.items() if v is not None}
        options = " ".join(f"{name}={value}" for name, value in given.items())
        return f"{job.backbone} {options} seed={job.seed}"
    return job.trial_id if isinstance(job, Trial) else f"{job.trial.trial_id} on test images"


def splits_key(data: DataOptions, seed: int) -> str:
    """What the splits of a data set and seed are shared under."""
    return f"{data.model_dump_json()} {seed}"


def do_job(
    job: Job, shared: Mapping[str, Splits], report: Report, *, workplace: Workplace
) -> TrialResult | DenseIsThere | FinalFigures | DiskIsFull:
    """Does a job.

    Args:
        shared: the splits of every data set and seed, by `splits_key`.
        report: gets every epoch's and round's figures.
    """
    set_threads(workplace.resources.threads or workplace.resources.cpus)
    tune_malloc()
    subject = job.trial if isinstance(job, FrontierTest) else job
    splits = shared[splits_key(subject.data, subject.seed)]
    if isinstance(job, FrontierTest):
        network = workplace.network(job.trial.trial_id)
        return final_figures(job.trial, splits, network, workplace.data_root, workplace.device)
    try:
        if isinstance(job, Trial):
            return run_trial(job, splits, workplace, report)
        warnings: list[str] = []
        with _heard(warnings):
            obtain_dense(job, splits, workplace, report)
        return DenseIsThere(tuple(warnings))
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        return DiskIsFull(error.errno, f"{error.strerror} (for {job_name(job)})")


def run_trial(trial: Trial, splits: Splits, workplace: Workplace, report: Report) -> TrialResult:
    """Runs one trial to its end. Its own errors end in its row, with status `failed`.

    Raises:
        OSError: if the disk is full, which is no error of the trial's.
    """
    started = datetime.now(UTC)
    row = known_columns(trial, started)
    reports: list[Mapping[str, float]] = []

    def keep_and_report(values: Mapping[str, float]) -> None:
        reports.append(dict(values))
        report(values)

    warnings: list[str] = []
    try:
        with _heard(warnings):
            result = _prune_and_measure(trial, splits, workplace, keep_and_report)
        row |= {"status": "completed", **result.row}
        row |= {name: sum(values.get(name, 0.0) for values in reports) for name in PASSES}
        row[BEFORE] = _first_reported(BEFORE, reports)
    except StoppedEarlyError as stopped:
        figures = {name: value for name, value in stopped.figures.items() if name in COLUMNS}
        row |= {"status": "stopped_early", **figures, "epochs_spent": stopped.epochs}
        row[BEFORE] = _first_reported(BEFORE, reports)
        result = TrialResult(row)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        # Whatever else a method, a user's network or the machine raises belongs to this trial.
        row |= {"status": "failed", "error": error_text(error)}
        result = TrialResult(row)
    write_reports(workplace.folder / "reports" / f"{trial.trial_id}.jsonl", reports)
    row["duration_s"] = (datetime.now(UTC) - started).total_seconds()
    return TrialResult(row, result.per_class, result.images, tuple(warnings))


@contextmanager
def _heard(warnings: list[str]) -> Iterator[None]:
    """Collects what the testbed warns of in its log, which nobody sees in a worker."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("testbed")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _first_reported(name: str, reports: Sequence[Mapping[str, float]]) -> float | None:
    return next((values[name] for values in reports if name in values), None)


def known_columns(trial: Trial, started: datetime) -> dict[str, Any]:
    """The columns of a row that are known before the trial runs."""
    return {
        "trial_id": trial.trial_id,
        "phase": trial.phase,
        "confirms": trial.confirms,
        "method": trial.method,
        "dataset": trial.data.name,
        "backbone": trial.backbone,
        "depth": trial.backbone_options.get("depth"),
        "dropout": trial.backbone_options.get("dropout"),
        "seed": trial.seed,
        "cell": trial.cell,
        "study": trial.study,
        "fine_tuning_epochs": trial.fine_tuning.epochs,
        "started_at": started.isoformat(timespec="milliseconds"),
        "torch_version": torch.__version__,
        "code_version": code_version(),
        **{f"{trial.method}.{name}": value for name, value in trial.options.items()},
    }


@cache
def code_version() -> str:
    """A hash of this project's own sources, which says more than a commit that may be changed."""
    project = Path(__file__).parents[2]
    rooms = ("baselines", "orchestrator", "rnp", "testbed")
    files = (path for room in rooms for path in (project / room).rglob("*"))
    sources = sorted(path for path in files if path.suffix in (".py", ".cpp"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def obtain_dense(
    network: DenseNetwork, splits: Splits, workplace: Workplace, report: Report = ignore
) -> tuple[nn.Module, DenseRecord]:
    """The trained dense network, from the store or trained now and kept there, and its record."""
    device = workplace.device
    teacher = _network(network.teacher, splits, workplace)
    # With the same settings another device, or one without bfloat16, makes another network.
    computed = {"device": device.type, "best_precision": str(best_precision(device))}
    spec = {**network.spec(splits.fingerprint), **computed}

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(network.seed)
            return build_backbone(
                network.backbone, splits.input_shape, splits.n_classes, **network.backbone_options
            )

    def train_it(model: nn.Module, checkpoint: Path) -> list[dict[str, float]]:
        history: list[dict[str, float]] = []

        def keep_and_report(values: Mapping[str, float]) -> None:
            history.append(dict(values))
            report(values)

        train(
            model,
            splits,
            network.training,
            seed=network.seed,
            device=device,
            report=keep_and_report,
            teacher=teacher,
            checkpoint=checkpoint,
        )
        return history

    model, record = DenseStore(workplace.dense).get_or_train(spec, build, train_it)
    return model.to(device), record


def _prune_and_measure(
    trial: Trial, splits: Splits, workplace: Workplace, report: Report
) -> TrialResult:
    network, teacher = dense_network(trial), fine_tuning_teacher(trial)
    dense, record = obtain_dense(network, splits, workplace)
    for epoch in record.history:  # so that a trial's curves begin where its network did
        report(
            {
                "epoch": epoch["epoch"],
                "dense_val_accuracy": epoch["val_accuracy"],
                "dense_train_loss": epoch["train_loss"],
            }
        )
    run = Run(
        seed=trial.seed,
        device=workplace.device,
        training=network.training,
        fine_tuning=trial.fine_tuning,
        report=report,
        folder=workplace.checkpoints(trial.trial_id),
        teacher=_network(teacher, splits, workplace),
        teacher_from_scratch=_network(network.teacher, splits, workplace),
        judge=_judge(trial, workplace.rungs),
    )
    method = method_class(trial.method).model_validate(trial.options)
    pruned = method.prune(dense, splits, run)
    judged = judged_on(method, splits)
    measured = measure(pruned, dense, judged, run.device, trial.training.precision)
    save_network(pruned, workplace.network(trial.trial_id))
    if measured.cost.decides_per_image:
        write_extremes(
            workplace.folder / "images" / f"{trial.trial_id}.png",
            judged.validation.pixels,
            measured.cost.per_image.tolist(),
        )
    labels = judged.validation.labels
    per_class = multiplications_per_class(measured.cost, labels, splits.class_names)
    return TrialResult(
        row={
            **measured.figures,
            "multiplications_per_class": {
                name: sum(layers.values()) for name, layers in per_class.items()
            },
            "dense_val_accuracy": _dense_accuracy(dense, record, trial, splits, judged, run.device),
            "classes": splits.n_classes,
            "validation_images": len(labels),
            "reward_images": len(splits.validation) - len(labels),
            "epochs_spent": run.epochs_spent,
        },
        per_class=per_class,
        images=_images(measured, judged),
    )


def _dense_accuracy(
    dense: nn.Module,
    record: DenseRecord,
    trial: Trial,
    splits: Splits,
    judged: Splits,
    device: torch.device,
) -> float | None:
    """The dense network's accuracy on the validation images that the trial's is measured on."""
    if not record.history:
        return None
    if len(judged.validation) == len(splits.validation):
        return record.history[-1]["val_accuracy"]
    precision = trial.training.precision
    return evaluate(dense, judged.validation, judged, device=device, precision=precision)


def _network(
    network: DenseNetwork | None, splits: Splits, workplace: Workplace
) -> nn.Module | None:
    return None if network is None else obtain_dense(network, splits, workplace)[0]


def _judge(trial: Trial, rungs: Rungs | None) -> Judge | None:
    """Who stops this trial early."""
    if rungs is None or trial.phase == "confirmation":
        return None
    return Judge(
        rungs=rungs.settings.rungs(trial.fine_tuning.epochs),
        look=partial(rungs.judge, trial.study, trial.trial_id),
        latency="latency_ms" in rungs.objectives,
    )


def _images(
    measured: Measurement, splits: Splits
) -> tuple[list[str], list[bool], list[int]] | None:
    """The validation images, if the network decides per image, else None."""
    if not measured.cost.decides_per_image:
        return None
    classes = [splits.class_names[label] for label in splits.validation.labels.tolist()]
    return classes, measured.correct.tolist(), measured.cost.per_image.tolist()
