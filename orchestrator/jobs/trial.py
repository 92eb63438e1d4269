"""A trial: a method prunes a dense network, and what comes back is measured."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from orchestrator.formatting import error_text
from orchestrator.jobs.dense import network_or_none, obtain_dense
from orchestrator.jobs.warnings import collected
from orchestrator.methods import method_class
from orchestrator.plan import Trial, dense_network, fine_tuning_teacher
from orchestrator.plan.jobs import AtRungs, TrialResult
from orchestrator.run_folder.atomic_files import FULL_DISK
from orchestrator.run_folder.logits import write_logits
from orchestrator.run_folder.trial_files import write_extremes, write_reports
from orchestrator.run_folder.trial_row import known_columns
from orchestrator.run_folder.trials_table import COLUMNS
from orchestrator.run_folder.workplace import Workplace
from testbed.data import Splits
from testbed.dense_store import DenseRecord
from testbed.measurement import Measurement, measure, multiplications_per_class
from testbed.method import BEFORE, ChecksNetwork, Foresees, Judge, Run, judged_on
from testbed.network_file import save_network
from testbed.shared_stage import obtain_stage
from testbed.training import Report, evaluate

# Passes of images that no method's budget of epochs counts, by what reports call them.
PASSES = ("q_learning_epochs", "reward_epochs", "statistics_epochs")
BUDGET_MET = 0.01  # relative, to either side


def run_trial(
    trial: Trial,
    splits: Splits,
    workplace: Workplace,
    report: Report,
    rungs: AtRungs | None = None,
) -> TrialResult:
    """Runs one trial to its end. Its own errors end in its row, with status `failed`.

    Args:
        rungs: where the trial may be stopped early. What `rungs.tell` raises is raised here; the
            trial's files are then those of the outcome that it was told.

    Raises:
        OSError: if the disk is full, which is no error of the trial's.
    """
    started = datetime.now(UTC)
    row = known_columns(trial, started)
    reports: list[dict[str, float]] = []
    warnings: list[str] = []

    def keep_and_report(values: Mapping[str, float]) -> None:
        reports.append({**values, "timestamp": datetime.now(UTC).timestamp()})
        report(values)

    def result(
        outcome: Mapping[str, Any],
        per_class: dict[str, dict[str, float]] | None = None,
        images: tuple[list[str], list[bool], list[int]] | None = None,
    ) -> TrialResult:
        write_reports(workplace.reports(trial.trial_id), reports)
        lasted = (datetime.now(UTC) - started).total_seconds()
        whole = {**row, **outcome, "duration_s": lasted}
        return TrialResult(whole, per_class or {}, images, tuple(warnings))

    def look(epochs: int, values: Mapping[str, float]) -> None:
        assert rungs is not None
        known = {name: value for name, value in values.items() if name in COLUMNS}
        before = {BEFORE: _first_reported(BEFORE, reports)}
        stopped = {"status": "stopped_early", **known, "epochs_spent": epochs, **before}
        rungs.tell(epochs, values, result(stopped))

    judge = None
    if rungs is not None and trial.phase == "search":
        places = rungs.settings.rungs(trial.fine_tuning.epochs)
        judge = Judge(rungs=places, look=look, latency=rungs.latency)
    try:
        with collected(warnings):
            measured = _prune_and_measure(trial, splits, workplace, keep_and_report, judge)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        # Whatever else a method, a user's network or the machine raises belongs to this trial.
        return result({"status": "failed", "error": error_text(error)})
    passes = {name: sum(values.get(name, 0.0) for values in reports) for name in PASSES}
    before = {BEFORE: _first_reported(BEFORE, reports)}
    trained = _trained(reports, trial, splits, measured.row["dense_multiplications"])
    completed = {"status": "completed", **measured.row, **passes, **trained, **before}
    return result(completed, measured.per_class, measured.images)


def make_shared_stage(trial: Trial, splits: Splits, workplace: Workplace, report: Report) -> None:
    """Makes the stage that a trial shares with others, unless it is there.

    None is made if the method refuses the trial's options: the trial then says so, and others that
    share the stage make it.
    """
    method = method_class(trial.method).model_validate(trial.options)
    dense, record = obtain_dense(dense_network(trial), splits, workplace)
    if isinstance(method, ChecksNetwork):
        try:
            method.check_network(copy.deepcopy(dense).cpu(), splits)
        except ValueError:
            return
    run = _run(trial, record, splits, workplace, report)
    obtain_stage(method, dense, judged_on(method, splits), run)


def _trained(
    reports: Sequence[Mapping[str, float]],
    trial: Trial,
    splits: Splits,
    dense_multiplications: float,
) -> dict[str, float]:
    """What was trained in sum; the dense network's share of it where the method fine-tunes.

    One that was trained elsewhere has none.
    """
    fine_tunes = _first_reported(BEFORE, reports) is not None
    epochs = dense_network(trial).training.epochs if fine_tunes else 0
    multiplications = epochs * len(splits.train) * dense_multiplications
    for values in reports:
        epochs += int(values.get("training_epochs", 0))
        multiplications += values.get("training_multiplications", 0.0)
    return {"training_epochs": epochs, "training_multiplications": multiplications}


def _first_reported(name: str, reports: Sequence[Mapping[str, float]]) -> float | None:
    return next((values[name] for values in reports if name in values), None)


def _prune_and_measure(
    trial: Trial, splits: Splits, workplace: Workplace, report: Report, judge: Judge | None
) -> TrialResult:
    dense, record = obtain_dense(dense_network(trial), splits, workplace)
    for epoch in record.history:  # so that a trial's curves begin where its network did
        begun = {"epoch": epoch["epoch"], "dense_val_accuracy": epoch["val_accuracy"]}
        if "train_loss" in epoch:  # else it was not trained here
            begun["dense_train_loss"] = epoch["train_loss"]
        report(begun)
    method = method_class(trial.method).model_validate(trial.options)
    if judge is not None and isinstance(method, Foresees):
        judge = replace(judge, foreseen=method.foreseen(dense, splits))
    run = _run(trial, record, splits, workplace, report, judge)
    pruned = method.prune(dense, splits, run)
    judged = judged_on(method, splits)
    measured = measure(pruned, dense, judged, run.device, trial.training.precision)
    save_network(pruned, workplace.network(trial.trial_id))
    if measured.cost.decides_per_image:
        write_extremes(
            workplace.folder / "images" / f"{trial.trial_id}.png",
            judged.validation,
            measured.cost.per_image.tolist(),
        )
    labels = judged.validation.labels
    write_logits(workplace.logits(trial.trial_id), measured.logits, labels)
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
            "budget_missed": budget_missed(method, measured.figures),
        },
        per_class=per_class,
        images=_images(measured, judged),
    )


def _run(
    trial: Trial,
    record: DenseRecord,
    splits: Splits,
    workplace: Workplace,
    report: Report,
    judge: Judge | None = None,
) -> Run:
    network = dense_network(trial)
    return Run(
        seed=trial.seed,
        device=workplace.device,
        training=network.training,
        fine_tuning=trial.fine_tuning,
        report=report,
        folder=workplace.checkpoints(trial.trial_id),
        teacher=network_or_none(fine_tuning_teacher(trial), splits, workplace),
        teacher_from_scratch=network_or_none(network.teacher, splits, workplace),
        judge=judge,
        dense=record,
    )


def budget_missed(method: Any, figures: Mapping[str, Any]) -> float | None:
    """By how much the multiplications miss what a method's `keep_multiplications` asks for.

    Relative, above 0 where they are more. None where that is not asked for, or met.
    """
    asked = getattr(method, "keep_multiplications", None)
    if asked is None:
        return None
    off = figures["multiplications"] / (asked * figures["dense_multiplications"]) - 1
    return off if abs(off) > BUDGET_MET else None


def _dense_accuracy(
    dense: nn.Module,
    record: DenseRecord,
    trial: Trial,
    splits: Splits,
    judged: Splits,
    device: torch.device,
) -> float | None:
    """The dense network's accuracy on the validation images that the trial's is measured on."""
    if not record.history:  # kept by an older version, of a network that was not trained
        return None
    if len(judged.validation) == len(splits.validation):
        return record.history[-1]["val_accuracy"]
    precision = trial.training.precision
    return evaluate(dense, judged.validation, judged, device=device, precision=precision)


def _images(
    measured: Measurement, splits: Splits
) -> tuple[list[str], list[bool], list[int]] | None:
    """The validation images, if the network decides per image, else None."""
    if not measured.cost.decides_per_image:
        return None
    classes = [splits.class_names[label] for label in splits.validation.labels.tolist()]
    return classes, measured.correct.tolist(), measured.cost.per_image.tolist()
