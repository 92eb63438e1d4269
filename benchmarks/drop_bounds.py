"""What drop bounds leave of a network, and whether they steer.

    python -m benchmarks.drop_bounds --data DATA_ROOT [--networks NAME ...] [--bounds B ...]
        [--seeds N ...] [--output FOLDER]

`policy_gradient` prunes all groups of CIFAR-10 networks within drop bounds of 0.5, 1, 2 and 3
points. Accuracies are of images that neither training nor pruning has seen and that are no test
images; a drop is what a network loses of its dense network's accuracy, in points. The row `dense`
is that network fine-tuned as the others are. Writes a csv and a Markdown table after each row; what
the csv has already is not run again, and a row that was stopped goes on after its last layer.
FOLDER/dense and FOLDER/unfinished have what that takes.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines import PolicyGradient
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, count_parameters
from testbed.data import DataOptions, Images, Splits, load_splits
from testbed.machine import set_threads, tune_malloc
from testbed.method import Run
from testbed.network_file import load_network, save_network
from testbed.prediction import evaluate
from testbed.training import Training, train

CPU = torch.device("cpu")
WIDTHS = {"vgg16": 0.25, "resnet18": 0.25, "resnet20": 1.0}
BOUNDS = (0.5, 1.0, 2.0, 3.0)
IMAGES = 10_000  # of which a fifth give rewards: half of these, as by default
JUDGING_IMAGES = 10_000
TRAINING = Training(epochs=30, batch_size=128, learning_rate=0.1)
FINE_TUNING = Training(epochs=13, batch_size=128, learning_rate=0.02)
STEPS = 100
COLUMNS = (
    "network", "seed", "bound", "multiplications", "parameters", "accuracy", "dense_accuracy",
    "reward_epochs", "seconds",
)  # fmt: skip

Row = dict[str, Any]


def images_of(root: Path, seed: int) -> tuple[Splits, Images]:
    """What the method sees, and the images that networks are judged on."""
    own = DataOptions(name="cifar10", train_images=IMAGES, validation_share=0.2, download=False)
    data = load_splits(own, root, seed)
    seen = {bytes(image.numpy()) for part in (data.train, data.validation) for image in part.pixels}
    half = DataOptions(name="cifar10", validation_share=0.5, download=False)
    others = load_splits(half, root, seed).validation
    new = [place for place, image in enumerate(others.pixels) if bytes(image.numpy()) not in seen]
    return data, others.select(torch.tensor(new[:JUDGING_IMAGES]))


def dense_network(network: str, seed: int, data: Splits, folder: Path) -> nn.Module:
    """As it was trained once, or is trained now."""
    torch.manual_seed(seed)
    model = build_backbone(network, data.input_shape, data.n_classes, width=WIDTHS[network])
    path = folder / f"{network}-{seed}.safetensors"
    if path.exists():
        return load_network(path, model)
    train(model, data, TRAINING, seed=seed, device=CPU)
    folder.mkdir(parents=True, exist_ok=True)
    save_network(model, path)
    return model


def row_of(network: str, seed: int, bound: str, root: Path, folder: Path) -> Row:
    """Prunes, fine-tunes and judges one network; of the bound "dense" it is not pruned."""
    data, judged = images_of(root, seed)
    dense = dense_network(network, seed, data, folder / "dense")
    dense_accuracy = evaluate(dense, judged, data, device=CPU)
    started = time.monotonic()

    def tell(values: Mapping[str, float]) -> None:
        if "layer" in values:
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"  {time.monotonic() - started:.0f} s: {told}", flush=True)

    unfinished = folder / "unfinished" / f"{network}-{seed}-{bound}"
    run = Run(seed, CPU, TRAINING, FINE_TUNING, tell, unfinished)
    parameters, all_multiplications = count_parameters(dense), multiplications(dense, data)
    if bound == "dense":
        pruned = dense
        run.fine_tune(pruned, data)
    else:
        method = PolicyGradient(drop_bound=float(bound), steps=STEPS, scope="all")
        pruned = method.prune(dense, data, run)
    return {
        "network": network,
        "seed": seed,
        "bound": bound,
        "multiplications": f"{multiplications(pruned, data) / all_multiplications:.4f}",
        "parameters": f"{count_parameters(pruned) / parameters:.4f}",
        "accuracy": f"{evaluate(pruned, judged, data, device=CPU):.4f}",
        "dense_accuracy": f"{dense_accuracy:.4f}",
        "reward_epochs": f"{sum(r.get('reward_epochs', 0) for r in run.reported):.1f}",
        "seconds": f"{time.monotonic() - started:.0f}",
    }


def multiplications(network: nn.Module, data: Splits) -> float:
    return count_multiplications(network, torch.zeros(1, *data.input_shape)).multiplications


def as_markdown(rows: Sequence[Row]) -> str:
    """Means over seeds, and those of each seed where there are several."""
    lines = [
        "| network | bound | seeds | multiplications | parameters | accuracy | drop, points |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, bound in dict.fromkeys((row["network"], row["bound"]) for row in rows):
        own = [r for r in rows if (r["network"], r["bound"]) == (network, bound)]
        drops = [100 * (float(r["dense_accuracy"]) - float(r["accuracy"])) for r in own]
        cells = [_mean([100 * float(r[name]) for r in own], 1, " %") for name in COLUMNS[3:5]]
        cells += [_mean([float(r["accuracy"]) for r in own], 4), _mean(drops, 2)]
        lines.append(f"| {network} | {bound} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], digits: int, unit: str = "") -> str:
    mean = f"{statistics.mean(values):.{digits}f}{unit}"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return mean if len(values) == 1 else f"{mean} ({each})"


def read(table: Path) -> list[Row]:
    """The rows of an earlier run."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row], folder: Path) -> None:
    """Both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "drop_bounds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "drop_bounds.md").write_text(as_markdown(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--networks", nargs="+", choices=list(WIDTHS), default=["vgg16"])
    parser.add_argument("--bounds", nargs="+", default=["dense", *map(str, BOUNDS)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/drop_bounds"))
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    rows = read(options.output / "drop_bounds.csv")
    wanted = [(n, s, b) for n in options.networks for s in options.seeds for b in options.bounds]
    for network, seed, bound in wanted:
        if (network, str(seed), bound) in {
            (r["network"], str(r["seed"]), r["bound"]) for r in rows
        }:
            continue
        rows.append(row_of(network, seed, bound, options.data, options.output))
        # In order, and after each row, so that a stopped run leaves what it found.
        rows.sort(key=lambda r: (list(WIDTHS).index(r["network"]), r["bound"], int(r["seed"])))
        write(rows, options.output)
        print(network, seed, bound, flush=True)
    print(as_markdown(rows), end="")


if __name__ == "__main__":
    main()
