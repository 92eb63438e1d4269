"""Which signals tell what images a wider network would correct, on all of CIFAR-10.

    python -m benchmarks.deciding_signals --data FOLDER [--epochs N] [--seed N]

A narrow network answers for all images; a signal ranks them, and the first 35 % get the answer of
a wider network. An image is worth it where the narrow network is wrong and the wider one right.
Pooled features are ranked by logistic regression, fitted on one half of the validation images; the
network's own answer needs no fit. All are judged on the other half: the area under the curve, and
the accuracy after widening. The networks are those of `benchmarks.cascade_frontier`, trained here
where they are missing. Writes `signals.csv` and `signals.md`.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from benchmarks.cascade_frontier import CHOICE_SHARE, STAGES, Networks
from testbed.data import DataOptions, Images, load_splits
from testbed.held_back import divided
from testbed.looks import confidence_of
from testbed.machine import set_threads, tune_malloc

WIDENED = 0.35
BATCH_SIZE = 500


class Part:
    """Images, and what the narrow and the wider network make of them."""

    def __init__(self, networks: Networks, epochs: int, images: Images) -> None:
        narrow, wide = networks.looks([(share, epochs, False) for share in STAGES], images)
        self.answers = narrow
        self.narrow_right = narrow.argmax(dim=1) == images.labels
        self.wide_right = wide.argmax(dim=1) == images.labels
        self.features = pooled(networks, epochs, images)

    @property
    def corrected(self) -> Tensor:
        """(n,) bool."""
        return self.wide_right & ~self.narrow_right

    def accuracy(self, scores: Tensor) -> float:
        """After the images of the highest scores (n,) were widened."""
        widened = torch.zeros_like(self.narrow_right)
        widened[scores.argsort(descending=True)[: round(WIDENED * len(scores))]] = True
        return torch.where(widened, self.wide_right, self.narrow_right).double().mean().item()

    def accuracy_at_random(self) -> float:
        """Its expectation."""
        rates = self.narrow_right.double().mean(), self.wide_right.double().mean()
        return float((1 - WIDENED) * rates[0] + WIDENED * rates[1])


def pooled(networks: Networks, epochs: int, images: Images) -> dict[str, Tensor]:
    """Signal -> mean of each channel (n, channels): of the pixels, and of what each conv reads."""
    network = networks.get(STAGES[0], epochs)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    means: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: means.setdefault(name, []).append(given[0].mean(dim=(2, 3)))

    names = ["pooled pixels", *(f"pooled inputs of conv {n}" for n in range(2, len(convs) + 1))]
    hooks = [
        conv.register_forward_pre_hook(note(name)) for name, conv in zip(names, convs, strict=True)
    ]
    inputs = networks.data.normalised(images)
    with torch.inference_mode():
        for start in range(0, len(images), BATCH_SIZE):
            network(inputs[start : start + BATCH_SIZE])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in means.items()}


def table(fitted: Part, judged: Part) -> pd.DataFrame:
    """A row for each signal."""
    rows = []

    def add(signal: str, scores: Tensor) -> None:
        area = roc_auc_score(judged.corrected, scores)
        rows.append({"signal": signal, "area": area, "accuracy": judged.accuracy(scores)})

    rows.append({"signal": "none, at random", "area": 0.5, "accuracy": judged.accuracy_at_random()})
    for name, features in fitted.features.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(features.numpy(), fitted.corrected.numpy())
        scores = model.decision_function(judged.features[name].numpy())
        add(name, torch.from_numpy(scores))
    add("largest probability of the answer", -confidence_of(judged.answers, "max_softmax"))
    add("margin of the answer", -confidence_of(judged.answers, "margin"))
    gain = judged.wide_right.double() - judged.narrow_right.double()
    rows.append({"signal": "oracle", "area": math.nan, "accuracy": judged.accuracy(gain)})
    return pd.DataFrame(rows)


def page(frame: pd.DataFrame, judged: Part, epochs: int, seed: int) -> str:
    """The table for people."""
    narrow, wide = judged.narrow_right.double().mean(), judged.wide_right.double().mean()
    shares = " and ".join(f"{share:.0%}" for share in STAGES)
    lines = [
        "# Which images need the wider network: what each signal tells",
        "",
        f"Networks of {shares} of the multiplications of the 11.2 M network, {epochs} epochs, seed "
        f"{seed}: {narrow:.4f} and {wide:.4f} of {len(judged.answers):,} validation images; "
        f"{judged.corrected.double().mean():.1%} are corrected by the wider one.",
        "",
        f"| signal | area under the curve | accuracy, {WIDENED:.0%} of the images widened |",
        "|---|---:|---:|",
    ]
    for _, row in frame.iterrows():
        area = "" if math.isnan(row.area) else f"{row.area:.3f}"
        lines.append(f"| {row.signal} | {area} | {row.accuracy:.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/cascade"), help="of the networks")
    parser.add_argument("--output", type=Path, default=Path("results/deciding_per_image"))
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    data = load_splits(DataOptions(name="cifar10"), options.data, options.seed)
    folder = options.runs / f"seed{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    networks = Networks(data, folder, options.seed, math.inf)
    fitting, held = divided(data, CHOICE_SHARE, "choice_share")
    parts = [Part(networks, options.epochs, images) for images in (fitting, held.validation)]
    frame = table(*parts)
    options.output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.output / "signals.csv", index=False)
    (options.output / "signals.md").write_text(page(frame, parts[1], options.epochs, options.seed))


if __name__ == "__main__":
    main()
