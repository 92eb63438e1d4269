"""What each part of RNP's training brings, on validation images of CIFAR-10.

    python -m benchmarks.rnp_ablation DATA_FOLDER [--seeds N] [--minutes N] [--of NETWORK ...]

`adapted.csv`: the adapted backbone with the same prefix of every conv for all images, and with
random prefixes; no decision is learnt. `decided.csv`: RNP at half of the multiplications, after
`rounds` of learning decisions and fine-tuning, all in as many epochs. `rnp_ablation.md`: their
means.

The parts: batch-norm statistics of each prefix, or one set for all; distillation in place, from the
dense network, or none; rounds. All start from the same dense network of a seed; runs that share an
adaptation share its network. Rows that are there already are not run again.
"""

import argparse
import copy
import csv
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from rnp import runtime_neural_pruning
from rnp.adaptation import Adaptation, adapted, random_prefixes
from rnp.runtime_network import RuntimeNetwork
from rnp.runtime_neural_pruning import RNP
from rnp.structure import channel_flow
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import DataOptions, Splits, load_splits
from testbed.machine import set_threads, tune_malloc
from testbed.method import OwnTeacher, Run
from testbed.prediction import autocast, evaluate, evaluating
from testbed.training import Training, train

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20, half the width": {"name": "resnet20", "width": 0.5, "prefixes": "widths"},
    "11.2 M": {
        "name": "conv", "channels": [32, 64, 96, 128], "pool_after": [1, 2, 3, 4], "hidden": 512,
        "prefixes": "sandwich",
    },
}  # fmt: skip
TRAINING = Training(epochs=10, batch_size=128, learning_rate=0.2)
ADAPTING, DECIDED = 3, 4  # epochs
DATA = DataOptions(name="cifar10", train_images=6000, validation_share=1 / 3)
COUNTED = 256  # validation images whose multiplications are counted
SHARE = 0.5  # of the multiplications
Q_LEARNING: dict[str, Any] = {
    "keep_multiplications": SHARE, "price": "multiplications", "steps": 150, "batch_size": 128,
    "q_learning_rate": 3e-3,
}  # fmt: skip
ONE_SET, PER_PREFIX = "one set of statistics", "statistics of each prefix"
FROM_DENSE, IN_PLACE = "and distilled from the dense network", "and distilled in place"
VARIANTS = (ONE_SET, PER_PREFIX, FROM_DENSE, IN_PLACE)
RUNS = [(ONE_SET, 2), (PER_PREFIX, 2), (PER_PREFIX, 1), (IN_PLACE, 2), (FROM_DENSE, 2),
        (PER_PREFIX, 4)]  # fmt: skip


class Table:
    """A CSV file of results, one row after the other."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path = path
        self.keys = keys

    def read(self) -> pd.DataFrame:
        columns = (*self.keys, "accuracy", "share", "q_learning_epochs", "seconds")
        return pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=columns)

    def has(self, *key: object) -> bool:
        rows = self.read()[list(self.keys)].itertuples(index=False, name=None)
        return any(row == key for row in rows)

    def add(self, row: Mapping[str, object]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


@dataclass(frozen=True)
class Subject:
    """A network and a seed."""

    name: str
    seed: int
    data: Splits

    def run(self) -> Run:
        fine_tuning = TRAINING.model_copy(update={"epochs": ADAPTING + DECIDED})
        return Run(seed=self.seed, device=CPU, training=TRAINING, fine_tuning=fine_tuning)

    def dense(self, folder: Path) -> nn.Module:
        options = {key: value for key, value in NETWORKS[self.name].items() if key != "prefixes"}
        torch.manual_seed(self.seed)
        model = build_backbone(options.pop("name"), (3, 32, 32), 10, **options)
        path = folder / f"{self.name} {self.seed}.pt"
        if not path.exists():
            train(model, self.data, TRAINING, seed=self.seed, device=CPU)
            torch.save(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model

    def options(self, variant: str, dense: nn.Module, rounds: int = 1) -> RNP:
        class FromDense(RNP):
            def teacher(self, network: RuntimeNetwork, in_place: bool = False) -> OwnTeacher:
                return OwnTeacher(copy.deepcopy(dense), self.distillation)

        return (FromDense if variant == FROM_DENSE else RNP)(
            rounds=rounds,
            adaptation=ADAPTING / (ADAPTING + DECIDED),
            prefixes=NETWORKS[self.name]["prefixes"],
            distillation=0.5 if variant in (FROM_DENSE, IN_PLACE) else 0.0,
            **Q_LEARNING,
        )


@contextmanager
def statistics_of(variant: str) -> Iterator[None]:
    """Batch norms with one set of statistics meanwhile, if that is the variant."""
    if variant != ONE_SET:
        yield
        return
    with mock.patch.object(channel_flow, "_mixed_norms", lambda *_: {}):
        yield


def measure_adapted(subject: Subject, variant: str, network: RuntimeNetwork, to: Table) -> None:
    images, largest = subject.data.validation, network.flow.groups - 1
    generator = torch.Generator().manual_seed(0)
    drawn = random_prefixes(
        len(images), network.flow, NETWORKS[subject.name]["prefixes"], generator
    )
    widths: dict[str, Tensor] = {
        f"{action + 1}/{largest + 1}": torch.full_like(drawn, action)
        for action in range(largest + 1)
    }
    for prefix, actions in {**widths, "random": drawn}.items():
        logits = []
        with evaluating(network), torch.no_grad(), autocast("auto", CPU):
            for first in range(0, len(images), 500):
                inputs = subject.data.normalised(images)[first : first + 500]
                logits.append(network.masked(inputs, actions[first : first + 500]).float())
        found = torch.cat(logits)
        to.add(
            {
                "network": subject.name,
                "seed": subject.seed,
                "variant": variant,
                "prefix": prefix,
                "accuracy": (found.argmax(dim=1) == images.labels).double().mean().item(),
                "cross_entropy": F.cross_entropy(found, images.labels).item(),
            }
        )


def adapted_network(
    subject: Subject, variant: str, dense: nn.Module, folder: Path, to: Table
) -> RuntimeNetwork:
    """The adapted network, from the folder or made now; measured once."""
    path = folder / f"{subject.name} {subject.seed} {variant}.pt"
    options = subject.options(variant, dense)
    if path.exists():
        network = options.skeleton(dense)
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        network = adapted(dense, subject.data, subject.run(), options)
        torch.save(network.state_dict(), path)
    if not to.has(subject.name, subject.seed, variant, "random"):
        measure_adapted(subject, variant, network, to)
    return network


def decide(
    subject: Subject, variant: str, rounds: int, dense: nn.Module, begun: RuntimeNetwork, to: Table
) -> None:
    """Runs RNP from an adapted network on."""

    def as_adapted(
        model: nn.Module, data: Splits, run: Run, options: Adaptation, *sizes: int
    ) -> RuntimeNetwork:
        run.resume_after(ADAPTING, [])
        return copy.deepcopy(begun)

    run, started = subject.run(), time.perf_counter()
    with mock.patch.object(runtime_neural_pruning, "adapted", as_adapted):
        network = subject.options(variant, dense, rounds).prune(dense, subject.data, run)
    images = subject.data.normalised(subject.data.validation[:COUNTED])
    whole = count_multiplications(dense, images).multiplications
    to.add(
        {
            "network": subject.name,
            "seed": subject.seed,
            "variant": variant,
            "rounds": rounds,
            "accuracy": evaluate(network, subject.data.validation, subject.data, device=CPU),
            "share": count_multiplications(network, images).multiplications / whole,
            "dense_accuracy": evaluate(dense, subject.data.validation, subject.data, device=CPU),
            "q_learning_epochs": sum(each.get("q_learning_epochs", 0) for each in run.reported),
            "seconds": time.perf_counter() - started,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=50.0, help="no run is begun after them")
    parser.add_argument("--of", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--adapted-only", action="store_true", help="learn no decisions")
    parser.add_argument("--to", type=Path, default=Path("results/rnp_ablation"))
    parser.add_argument("--networks", type=Path, default=Path(gettempdir()) / "rnp_ablation")
    given = parser.parse_args()
    set_threads(1)
    tune_malloc()
    end = time.monotonic() + 60 * given.minutes
    for folder in (given.to, given.networks):
        folder.mkdir(parents=True, exist_ok=True)
    common = ("network", "seed", "variant")
    widths = Table(given.to / "adapted.csv", (*common, "prefix"))
    decided = Table(given.to / "decided.csv", (*common, "rounds"))
    for seed, name in product(range(given.seeds), given.of):
        subject = Subject(name, seed, load_splits(DATA, given.data, seed))
        for variant, rounds in RUNS:
            if decided.has(name, seed, variant, rounds) or time.monotonic() > end:
                continue
            dense = subject.dense(given.networks)
            with statistics_of(variant):
                begun = adapted_network(subject, variant, dense, given.networks, widths)
                if not given.adapted_only:
                    decide(subject, variant, rounds, dense, begun, decided)
    write_page(given.to, widths.read(), decided.read())


def write_page(folder: Path, widths: pd.DataFrame, decided: pd.DataFrame) -> None:
    """Means over seeds, and differences between runs of the same seed."""
    lines = [
        "# What each part of RNP's training brings", "",
        "CIFAR-10, 4,000 training images; figures from 2,000 validation images; dense networks of "
        f"{TRAINING.epochs} epochs, {ADAPTING} of adaptation and {DECIDED} under decisions.",
        "Made by `python -m benchmarks.rnp_ablation DATA_FOLDER`.", "",
        "## The adapted backbone, all images with the same prefixes", "",
    ]  # fmt: skip
    for value in ("accuracy", "cross_entropy"):
        lines += [f"{value}, mean over seeds:", ""]
        table = widths.pivot_table(index=["network", "variant"], columns="prefix", values=value)
        n = widths.groupby(["network", "variant"])["seed"].nunique()
        lines += _table(table.assign(n=n).reset_index())
    if len(decided):
        lines += _decided(decided)
    (folder / "rnp_ablation.md").write_text("\n".join(lines))


def _decided(decided: pd.DataFrame) -> list[str]:
    lines = [
        f"## RNP, {SHARE:.0%} of the multiplications asked for", "",
        "Accuracy less that of the same seed with statistics of each prefix and 2 rounds, in "
        "points, mean and standard deviation:", "",
    ]  # fmt: skip
    rows = decided.set_index(["network", "seed"])
    base = rows[(rows["variant"] == PER_PREFIX) & (rows["rounds"] == 2)]["accuracy"]
    rows = rows.assign(gained=100 * (rows["accuracy"] - base)).reset_index()
    by = rows.groupby(["network", "variant", "rounds"])
    summary = pd.DataFrame(
        {
            "n": by.size(),
            "accuracy": by["accuracy"].mean(),
            "share": by["share"].mean(),
            "gained": by["gained"].mean(),
            "deviation": by["gained"].std(),
            "passes for decisions": by["q_learning_epochs"].mean(),
            "seconds": by["seconds"].mean(),
        }
    )
    return lines + _table(summary.reset_index())


def _table(frame: pd.DataFrame) -> list[str]:
    def text(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [[text(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    head = [str(name) for name in frame.columns]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


if __name__ == "__main__":
    main()
