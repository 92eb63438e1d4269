"""Charts of what happened in trials: learning curves, weights that are gone, rounds of pruning."""

from typing import Any

import pandas as pd

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.palette import CSS
from orchestrator.report.charts import vega_lite as vega
from orchestrator.run_folder.trial_files import read_reports

REPORTS = "reports/{}.jsonl"


def learning_curves(result: SweepResult, trials: pd.DataFrame) -> vega.Spec | None:
    """Validation accuracy while trials were trained; 0 is where pruning began."""
    values: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    for _, trial in trials.iterrows():
        epochs = [each for each in read_reports(result.file(trial, REPORTS)) if "epoch" in each]
        own = [each["val_accuracy"] for each in epochs if "val_accuracy" in each]
        budget = trial["fine_tuning_epochs"]
        scratch = max(len(own) - (0 if pd.isna(budget) else int(budget)), 0)
        values += _curve(trial["trial_id"], trial["method"], own, 1 - scratch)
        if not dense:
            before = [each["dense_val_accuracy"] for each in epochs if "dense_val_accuracy" in each]
            dense = _curve("dense network", "before", before, 1 - len(before))
    if not values:
        return None
    encoding = {
        "x": vega.axis("epoch", "Epochs since pruning began"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "detail": {"field": "trial"},
        "tooltip": vega.tooltip("trial", "epoch", "accuracy"),
    }
    coloured = {**encoding, "color": vega.method_scales(result)[0]}
    layers = [
        vega.layer(
            "line", encoding, keep="datum.method === 'before'", strokeDash=[4, 3], color=CSS.muted
        ),
        vega.layer(
            "line", coloured, keep="datum.method !== 'before'", opacity=0.9, point={"size": 20},
            strokeWidth=1.8,
        ),
    ]  # fmt: skip
    return vega.chart(values + dense, layers, "Validation accuracy over epochs.")


def _curve(trial: str, method: str, reached: list[float], first: int) -> list[dict[str, Any]]:
    return [
        {"trial": trial, "method": method, "accuracy": accuracy, "epoch": epoch}
        for epoch, accuracy in enumerate(reached, start=first)
    ]


def sparsity_chart(result: SweepResult) -> vega.Spec | None:
    """Accuracy against the share of weights that are gone, before and after retraining."""
    rows = result.searched[result.searched["status"] == "completed"]
    left = rows["parameters"].astype(float) * (1 - rows["sparsity"].fillna(0))
    rows = rows.assign(gone=1 - left / rows["dense_parameters"].astype(float))
    rows = rows.dropna(subset=["gone", "val_accuracy", "val_accuracy_before_finetuning"])
    rows = rows[rows["gone"] > 0]
    if rows.empty:
        return None
    before, after = rows["val_accuracy_before_finetuning"], rows["val_accuracy"]
    marks = rows[["trial_id", "method", "gone"]].rename(columns={"trial_id": "trial"})
    pruned = marks.assign(accuracy=before, when="before retraining")
    values = pd.concat([pruned, marks.assign(accuracy=after, when="after")])
    colour, shape = vega.method_scales(result)
    hollow = {"test": "datum.when === 'before retraining'", "value": "transparent"}
    encoding = {
        "x": vega.axis("gone", "Share of the dense network's weights that are gone", "%"),
        "y": vega.axis("accuracy", "Validation accuracy"),
        "stroke": colour,
        "shape": shape,
        "fill": {**colour, "condition": hollow},
        "tooltip": vega.tooltip("trial", "method", "when", "gone", "accuracy"),
    }
    return vega.chart(
        values.sort_index(kind="stable"),
        [vega.layer("point", encoding, opacity=0.8, size=45, strokeWidth=1.5)],
        "Accuracy against the share of weights that are gone, before and after retraining.",
    )


def rounds_chart(result: SweepResult, trials: pd.DataFrame) -> vega.Spec | None:
    """Sparsity over the rounds of prune and retrain: pruned, then retrained."""
    before = "sparsity_before_finetuning"
    values = [
        {"trial": trial["trial_id"], "method": trial["method"], "step": step, "sparsity": sparsity}
        for _, trial in trials.iterrows()
        for report in read_reports(result.file(trial, REPORTS))
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
        "y": vega.axis("sparsity", "Share of weights that are zero", "%", {"zero": True}),
        "color": vega.method_scales(result)[0],
        "detail": {"field": "trial"},
        "tooltip": vega.tooltip("trial", "step", "sparsity"),
    }
    return vega.chart(
        values,
        [vega.layer("line", encoding, opacity=0.7, point=True, strokeWidth=1.5)],
        "Sparsity over rounds of pruning and retraining.",
    )
