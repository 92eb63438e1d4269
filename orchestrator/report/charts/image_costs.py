"""Chart of what single images cost, with the images that cost least and most."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.formatting import millions
from orchestrator.palette import CSS, method_marks
from orchestrator.report.charts import vega_lite as vega
from orchestrator.run_folder.trial_files import extremes, read_extremes

BINS = 30
MOST_TRIALS = 4  # whose single images are shown
MOST_CLASSES = 7  # that have colours of their own


Picture = tuple[str, str]
"""One image as a `data:` address; and its true class, what it cost, and whether it was right."""


def image_costs(
    result: SweepResult, trials: pd.DataFrame
) -> Iterator[tuple[str, vega.Spec, list[Picture], list[Picture]]]:
    """What the most accurate of the trials, at most `MOST_TRIALS`, spent on single images.

    Of each its title, how many images cost how much, and the cheapest and the dearest of them.
    """
    for _, trial in trials.nlargest(MOST_TRIALS, "val_accuracy").iterrows():
        images = result.images(trial)
        picture = result.file(trial, "images/{}.png")
        costs = images["multiplications"].tolist()
        shown: list[list[Picture]] = [[], []]
        if picture.exists():
            shown = [
                [(_address(each), _said(images.iloc[place])) for place, each in row]
                for row in map(zip, extremes(costs), read_extremes(picture, len(costs)))
            ]
        colour, _ = method_marks(result.methods, CSS)[trial["method"]]
        drawn = _histogram(images, trial["dense_multiplications"], colour)
        yield result.title(trial), drawn, shown[0], shown[1]


def _histogram(images: pd.DataFrame, dense: float, own_colour: str) -> vega.Spec:
    """How many images cost how much.

    Args:
        images: class, correct and multiplications of each, as in images/TRIAL_ID.csv.
        dense: the dense network's multiplications.
        own_colour: the method's, where classes are too many for one each.
    """
    shares = images["multiplications"].to_numpy(dtype=float) / dense
    edges = np.linspace(0, max(1.0, float(shares.max())), BINS + 1)
    values = [
        {"from": low, "to": high, "class": name, "images": count}
        for name, own in pd.Series(shares).groupby(images["class"].to_numpy(), sort=False)
        for low, high, count in zip(edges, edges[1:], np.histogram(own, edges)[0], strict=False)
        if count
    ]
    names = list(dict.fromkeys(value["class"] for value in values))
    colour: dict[str, Any] = {"value": own_colour}
    if len(names) <= MOST_CLASSES:
        scale = {"domain": names, "range": list(CSS.methods[: len(names)])}
        legend = {"title": "true class", "orient": "top", "columns": 6}
        colour = {"field": "class", "type": "nominal", "scale": scale, "legend": legend}
    encoding = {
        "x": {**vega.axis("from", "Share of the dense network's multiplications", "%")}
        | {"bin": {"binned": True}},
        "x2": {"field": "to"},
        "y": {**vega.axis("images", "Images"), "stack": "zero"},
        "color": colour,
        "tooltip": vega.tooltip("class", "images", "from"),
    }
    what = "How many images cost which share of the dense network's multiplications."
    return vega.chart(values, [vega.layer("bar", encoding)], what)


def _address(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _said(image: pd.Series) -> str:
    right = "" if image["correct"] in (True, "true") else ", wrong"
    return f"{image['class']}, {millions(image['multiplications'])}{right}"
