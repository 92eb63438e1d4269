"""Charts of what happened in trials: learning curves, weights that are gone, rounds of pruning."""

from __future__ import annotations

from typing import Any

import pandas as pd

from orchestrator.palette import CSS
from orchestrator.report.charts import vega_lite as vega
from orchestrator.report.sweep_result import SweepResult
from orchestrator.run_folder.trial_files import read_reports


def learning_curves(result: SweepResult, trials: pd.DataFrame) -> vega.Spec | None:
    """Validation accuracy while trials were trained; 0 is where pruning began."""
    values: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    for _, trial in trials.iterrows():
        epochs = [each for each in _reports(result, trial) if "epoch" in each]
        own = [each["val_accuracy"] for each in epochs if "val_accuracy" in each]
        budget = trial["fine_tuning_epochs"]
        scratch = max(len(own) - (0 if pd.isna(budget) else int(budget)), 0)
        values += [
            {"trial": trial["trial_id"], "method": trial["method"], "accuracy": reached}
            | {"epoch": epoch - scratch}
            for epoch, reached in enumerate(own, start=1)
        ]
        if not dense:
            before = [each["dense_val_accuracy"] for each in epochs if "dense_val_accuracy" in each]
            dense = [
                {"trial": "dense network", "method": "before", "accuracy": reached}
                | {"epoch": epoch - len(before)}
                for epoch, reached in enumerate(before, start=1)
            ]
    if not values:
        return None
    encoding = {
        "x": vega.axis("epoch", "Epochs since pruning began"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "detail": {"field": "trial"},
        "tooltip": vega.tooltip("trial", "epoch", "accuracy"),
    }
    coloured = {**encoding, "color": vega.method_scales(result, CSS)[0], "opacity": vega.faded(0.9)}
    trained = vega.layer(
        "line", coloured, keep="datum.method !== 'before'", point={"size": 20}, strokeWidth=1.8
    )
    before_all = vega.layer(
        "line", encoding, keep="datum.method === 'before'", strokeDash=[4, 3], color=CSS.muted
    )
    return vega.chart(values + dense, [before_all, trained], "Validation accuracy over epochs.")


def sparsity_chart(result: SweepResult) -> vega.Spec | None:
    """Accuracy against the share of weights that are gone, before and after retraining."""
    rows = result.searched[result.searched["status"] == "completed"]
    left = rows["parameters"].astype(float) * (1 - rows["sparsity"].fillna(0))
    rows = rows.assign(gone=1 - left / rows["dense_parameters"].astype(float))
    rows = rows.dropna(subset=["gone", "val_accuracy", "val_accuracy_before_finetuning"])
    rows = rows[rows["gone"] > 0]
    if rows.empty:
        return None
    values = [
        {"trial": row["trial_id"], "method": row["method"], "gone": row["gone"]}
        | {"accuracy": row[column], "when": when}
        for _, row in rows.iterrows()
        for when, column in (
            ("before retraining", "val_accuracy_before_finetuning"),
            ("after", "val_accuracy"),
        )
    ]
    colour, _ = vega.method_scales(result, CSS)
    hollow = {"test": "datum.when === 'before retraining'", "value": "transparent"}
    encoding = {
        "x": vega.axis("gone", "Share of the dense network's weights that are gone", "%"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "stroke": colour,
        "fill": {**colour, "condition": hollow},
        "opacity": vega.faded(0.8),
        "tooltip": vega.tooltip("trial", "method", "when", "gone", "accuracy"),
    }
    return vega.chart(
        values,
        [vega.layer("point", encoding, size=45, strokeWidth=1.5)],
        "Accuracy against the share of weights that are gone, before and after retraining.",
    )


def rounds_chart(result: SweepResult, trials: pd.DataFrame) -> vega.Spec | None:
    """Sparsity over the rounds of prune and retrain: pruned, then retrained."""
    before = "sparsity_before_finetuning"
    values = [
        {"trial": trial["trial_id"], "method": trial["method"], "step": step, "sparsity": sparsity}
        for _, trial in trials.iterrows()
        for report in _reports(result, trial)
        if before in report
        for step, sparsity in (
            (report["round"] - 0.5, report[before]),
            (report["round"], report["sparsity"]),
        )
    ]
    if not values:
        return None
    encoding = {
        "x": vega.axis("step", "Round: pruned at the half, retrained at the whole"),
        "y": vega.axis("sparsity", "Share of weights that are zero", "%"),
        "color": vega.method_scales(result, CSS)[0],
        "detail": {"field": "trial"},
        "opacity": vega.faded(0.7),
        "tooltip": vega.tooltip("trial", "step", "sparsity"),
    }
    return vega.chart(
        values,
        [vega.layer("line", encoding, point=True, strokeWidth=1.5)],
        "Sparsity over rounds of pruning and retraining.",
    )


def _reports(result: SweepResult, trial: pd.Series) -> list[dict[str, float]]:
    return read_reports(result.file(trial, "reports/{}.jsonl"))
