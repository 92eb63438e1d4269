"""The report's further figures, as Vega-Lite specifications that hold their own data.

What all, half and one of the seeds reach; accuracy and sparsity before and after retraining, and
over rounds; learning curves; what single images cost.
Written out rather than built with altair, which takes a tenth of a second for each chart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.comparison import attainment
from orchestrator.palette import CSS
from orchestrator.report.specification import Spec, axis, faded, method_scales, spec_of, tooltip
from orchestrator.report.sweep_result import SweepResult
from orchestrator.run_folder.trial_files import read_reports

BINS = 30
MOST_CLASSES = 7  # that have colours of their own


def attainment_spec(result: SweepResult, surfaces: pd.DataFrame, cell: str) -> Spec | None:
    """The accuracy at each cost that all, half and one of the seeds reach."""
    own = surfaces[surfaces["cell"] == cell]
    if own.empty:
        return None
    values: list[dict[str, Any]] = []
    for (method, count, n), corners in own.groupby(["method", "reached_by", "seeds"], sort=False):
        by = "every seed" if count == n else "one seed" if count == 1 else "half of the seeds"
        steps = [(row["share"], row["val_accuracy"]) for _, row in corners.iterrows()]
        steps.append((max(1.0, steps[-1][0]), steps[-1][1]))
        values += [
            {"method": method, "by": by, "share": share, "accuracy": each} for share, each in steps
        ]
    colour, _ = method_scales(result, CSS)
    dashes = {"domain": ["every seed", "half of the seeds", "one seed"]}
    return spec_of(
        values,
        [
            {
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8},
                "encoding": {
                    "x": axis("share", "Share of the dense network's multiplications", "%"),
                    "y": axis("accuracy", "Validation accuracy"),
                    "color": colour,
                    "opacity": faded(0.9),
                    "strokeDash": {
                        "field": "by",
                        "type": "nominal",
                        "scale": {**dashes, "range": [[1, 0], [5, 3], [1, 3]]},
                        "legend": {"title": "reached by", "orient": "top", "symbolType": "stroke"}
                        | {"symbolStrokeColor": CSS.ink, "symbolStrokeWidth": 2, "symbolSize": 400}
                        | {"titleFontWeight": "normal", "titleColor": CSS.muted},
                    },
                },
            }
        ],
        "Accuracies that all, half and one of the seeds reach at each cost.",
    )


def sparsity_spec(result: SweepResult) -> Spec | None:
    """Accuracy against the share of weights that are gone, before and after retraining."""
    rows = result.searched[result.searched["status"] == "completed"]
    left = rows["parameters"].astype(float) * (1 - rows["sparsity"].fillna(0))
    rows = rows.assign(gone=1 - left / rows["dense_parameters"].astype(float))
    rows = rows.dropna(subset=["gone", "val_accuracy", "val_accuracy_before_finetuning"])
    rows = rows[rows["gone"] > 0]
    if rows.empty:
        return None
    values = [
        {
            "trial": row["trial_id"],
            "method": row["method"],
            "gone": row["gone"],
            "accuracy": row[column],
            "when": when,
        }
        for _, row in rows.iterrows()
        for when, column in (
            ("before retraining", "val_accuracy_before_finetuning"),
            ("after", "val_accuracy"),
        )
    ]
    colour, _ = method_scales(result, CSS)
    hollow = {"test": "datum.when === 'before retraining'", "value": "transparent"}
    return spec_of(
        values,
        [
            {
                "mark": {"type": "point", "size": 45, "strokeWidth": 1.5},
                "encoding": {
                    "x": axis("gone", "Share of the dense network's weights that are gone", "%"),
                    "y": axis("accuracy", "Validation accuracy"),
                    "stroke": colour,
                    "fill": {**colour, "condition": hollow},
                    "opacity": faded(0.8),
                    "tooltip": tooltip(
                        {name: name for name in ("trial", "method", "when", "gone", "accuracy")}
                    ),
                },
            }
        ],
        "Accuracy against the share of weights that are gone, before and after retraining.",
    )


def rounds_spec(result: SweepResult, trials: pd.DataFrame) -> Spec | None:
    """Sparsity over the rounds of prune and retrain: pruned, then retrained."""
    values = []
    for _, trial in trials.iterrows():
        reports = read_reports(result.file(trial, "reports/{}.jsonl"))
        for report in (each for each in reports if "sparsity_before_finetuning" in each):
            named = {"trial": trial["trial_id"], "method": trial["method"]}
            step = report["round"]
            values.append({**named, "step": step - 0.5, "sparsity": report[_BEFORE]})
            values.append({**named, "step": step, "sparsity": report["sparsity"]})
    if not values:
        return None
    colour, _ = method_scales(result, CSS)
    return spec_of(
        values,
        [
            {
                "mark": {"type": "line", "point": True, "strokeWidth": 1.5},
                "encoding": {
                    "x": axis("step", "Round: pruned at the half, retrained at the whole"),
                    "y": axis("sparsity", "Share of weights that are zero", "%"),
                    "color": colour,
                    "detail": {"field": "trial"},
                    "opacity": faded(0.7),
                    "tooltip": tooltip({name: name for name in ("trial", "step", "sparsity")}),
                },
            }
        ],
        "Sparsity over rounds of pruning and retraining.",
    )


_BEFORE = "sparsity_before_finetuning"


def curves_spec(result: SweepResult, trials: pd.DataFrame) -> Spec | None:
    """Validation accuracy while trials were trained; 0 is where pruning began."""
    values: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    for _, trial in trials.iterrows():
        reports = read_reports(result.file(trial, "reports/{}.jsonl"))
        epochs = [each for each in reports if "epoch" in each]
        before = [each for each in epochs if "dense_val_accuracy" in each]
        own = [each for each in epochs if "val_accuracy" in each]
        budget = trial["fine_tuning_epochs"]
        scratch = max(len(own) - (0 if pd.isna(budget) else int(budget)), 0)
        named = {"trial": trial["trial_id"], "method": trial["method"]}
        values += [
            {**named, "epoch": place + 1 - scratch, "accuracy": each["val_accuracy"]}
            for place, each in enumerate(own)
        ]
        if not dense:
            dense = [
                {"trial": "dense network", "method": "before", "epoch": place + 1 - len(before)}
                | {"accuracy": each["dense_val_accuracy"]}
                for place, each in enumerate(before)
            ]
    if not values:
        return None
    colour, _ = method_scales(result, CSS)
    encoding = {
        "x": axis("epoch", "Epochs since pruning began"),
        "y": axis("accuracy", "Validation accuracy"),
        "detail": {"field": "trial"},
        "tooltip": tooltip({name: name for name in ("trial", "epoch", "accuracy")}),
    }
    return spec_of(
        values + dense,
        [
            {
                "transform": [{"filter": "datum.method === 'before'"}],
                "mark": {"type": "line", "strokeDash": [4, 3], "color": CSS.muted},
                "encoding": encoding,
            },
            {
                "transform": [{"filter": "datum.method !== 'before'"}],
                "mark": {"type": "line", "point": {"size": 20}, "strokeWidth": 1.8},
                "encoding": {**encoding, "color": colour, "opacity": faded(0.9)},
            },
        ],
        "Validation accuracy over epochs.",
    )


def spread_spec(images: pd.DataFrame, dense: float) -> Spec:
    """How many images cost how much.

    Args:
        images: class, correct and multiplications of each, as in images/TRIAL_ID.csv.
        dense: the dense network's multiplications.
    """
    shares = images["multiplications"].to_numpy(dtype=float) / dense
    edges = np.linspace(0, max(1.0, float(shares.max())), BINS + 1)
    values = [
        {"from": float(low), "to": float(high), "class": str(name), "images": int(count)}
        for name, rows in images.groupby("class", sort=False)
        for low, high, count in zip(
            edges[:-1],
            edges[1:],
            np.histogram(rows["multiplications"].to_numpy(dtype=float) / dense, edges)[0],
            strict=True,
        )
        if count
    ]
    names = list(dict.fromkeys(value["class"] for value in values))
    many = len(names) > MOST_CLASSES
    colour: dict[str, Any] = {"value": CSS.methods[0]}
    if not many:
        scale = {"domain": names, "range": list(CSS.methods[: len(names)])}
        colour = {"field": "class", "type": "nominal", "scale": scale}
        colour["legend"] = {"title": "true class", "orient": "top", "columns": 6}
    return spec_of(
        values,
        [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "x": {**axis("from", "Share of the dense network's multiplications", "%")}
                    | {"bin": {"binned": True}},
                    "x2": {"field": "to"},
                    "y": {**axis("images", "Images"), "stack": "zero"},
                    "color": colour,
                    "tooltip": tooltip({"class": "class", "images": "images", "from": "from"}),
                },
            }
        ],
        "How many images cost which share of the dense network's multiplications.",
    )


def surfaces(result: SweepResult) -> pd.DataFrame:
    """The attainment surfaces of all cells and methods (see `attainment`)."""
    return attainment(result.trials)
