"""What drop bounds leave of a network, and whether they steer.

    python -m benchmarks.drop_bounds --data DATA_ROOT [--networks NAME ...] [--bounds B ...]
        [--seeds N ...] [--individual B] [--output FOLDER]

`policy_gradient` prunes all groups of CIFAR-10 networks within drop bounds of 0.5, 1, 2 and 3
points. Accuracies are of images that neither training nor pruning has seen and that are no test
images; a drop is what a network loses of its dense network's accuracy, in points. The row `dense`
is that network fine-tuned as the others are.

`--individual B` prunes at that bound one layer of the dense network at a time as well, and compares
how many channels go with how many go where all layers are pruned (the report's figure 1).

Writes csv files and Markdown tables after each row; what a csv has already is not run again, and a
row that was stopped goes on after its last layer. FOLDER/dense and FOLDER/checkpoints have what
that takes.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines import PolicyGradient
from baselines.channels.channel_groups import channel_groups
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

CHANNEL_COLUMNS = ("network", "seed", "bound", "pruned", "layer", "channels", "removed")
ENTIRE, INDIVIDUAL = "all layers", "one layer"

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


def row_of(network: str, seed: int, bound: str, root: Path, folder: Path) -> tuple[Row, list[Row]]:
    """Prunes, fine-tunes and judges one network; of the bound "dense" it is not pruned.

    Returns:
        Its row, and one for each layer that was pruned.
    """
    data, judged = images_of(root, seed)
    dense = dense_network(network, seed, data, folder / "dense")
    dense_accuracy = evaluate(dense, judged, data, device=CPU)
    started = time.monotonic()
    checkpoints = folder / "checkpoints" / f"{network}-{seed}-{bound}"
    run = Run(seed, CPU, TRAINING, FINE_TUNING, told_since(started), checkpoints)
    parameters, all_multiplications = count_parameters(dense), multiplications(dense, data)
    if bound == "dense":
        pruned = dense
        run.fine_tune(pruned, data)
    else:
        method = PolicyGradient(drop_bound=float(bound), steps=STEPS, scope="all")
        pruned = method.prune(dense, data, run)
    row = {
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
    return row, channel_rows(network, seed, bound, ENTIRE, run)


def individual(
    network: str, seed: int, bound: str, root: Path, folder: Path, done: Collection[str]
) -> Iterator[Row]:
    """One layer of the dense network pruned at a time: a row for each that is not done.

    No network is fine-tuned, as an agent decides before that.
    """
    data, _ = images_of(root, seed)
    dense = dense_network(network, seed, data, folder / "dense")
    tell = told_since(time.monotonic())
    for layer in channel_groups(dense, torch.zeros(1, *data.input_shape), scope="all"):
        if layer in done:
            continue
        run = Run(seed, CPU, TRAINING, FINE_TUNING.model_copy(update={"epochs": 0}), tell)
        method = PolicyGradient(
            drop_bound=float(bound), steps=STEPS, scope="all", layers="one", layer=layer
        )
        method.prune(dense, data, run)
        yield from channel_rows(network, seed, bound, INDIVIDUAL, run)


def told_since(started: float) -> Callable[[Mapping[str, float]], None]:
    """Prints what is reported of a layer."""

    def tell(values: Mapping[str, float]) -> None:
        if "layer" in values:
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"  {time.monotonic() - started:.0f} s: {told}", flush=True)

    return tell


def channel_rows(network: str, seed: int, bound: str, pruned: str, run: Run) -> list[Row]:
    """How many channels went, of each layer that a run has pruned."""
    counts = {name: value for report in run.reported for name, value in report.items()}
    removed = {
        name.partition(".")[2]: int(value)
        for name, value in counts.items()
        if name.startswith("channels_pruned.")
    }
    return [
        {
            "network": network,
            "seed": seed,
            "bound": bound,
            "pruned": pruned,
            "layer": layer,
            "channels": n + int(counts[f"channels_kept.{layer}"]),
            "removed": n,
        }
        for layer, n in removed.items()
    ]


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


def channels_as_markdown(rows: Sequence[Row], individually: str) -> str:
    """Channels of each layer, and how many went by either way at one bound; means over seeds."""
    lines = list[str]()
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [r for r in rows if (r["network"], r["bound"]) == (network, individually)]
        channels = {r["layer"]: r["channels"] for r in own}
        lines += [
            f"| {network}, bound {individually} | {' | '.join(channels)} |",
            f"| --- |{' ---: |' * len(channels)}",
            f"| channels | {' | '.join(map(str, channels.values()))} |",
        ]
        for how in (INDIVIDUAL, ENTIRE):
            removed = [
                [int(r["removed"]) for r in own if (r["pruned"], r["layer"]) == (how, layer)]
                for layer in channels
            ]
            cells = [f"{statistics.mean(each):.3g}" if each else "" for each in removed]
            lines.append(f"| removed, {how} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


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


def write(rows: Sequence[Row], columns: Sequence[str], table: Path) -> None:
    """A table that `read` reads."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def as_bound(text: str) -> str:
    """As the tables have it."""
    return text if text == "dense" else str(float(text))


def has(rows: Sequence[Row], **of: object) -> bool:
    """Whether a row has these values."""
    return any(all(str(row[name]) == str(value) for name, value in of.items()) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--networks", nargs="+", choices=list(WIDTHS), default=["vgg16"])
    parser.add_argument("--bounds", nargs="+", type=as_bound, default=["dense", *map(str, BOUNDS)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--individual", metavar="B", type=as_bound, help="one layer at a time as well, within B"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/drop_bounds"))
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    table, channel_table = (options.output / f"{name}.csv" for name in ("drop_bounds", "channels"))
    rows, channels = read(table), read(channel_table)

    def keep() -> None:
        """In order, and after each row, so that a stopped run leaves what it found."""
        rows.sort(key=lambda r: (list(WIDTHS).index(r["network"]), r["bound"], int(r["seed"])))
        write(rows, COLUMNS, table)
        write(channels, CHANNEL_COLUMNS, channel_table)
        pages = [as_markdown(rows)]
        if options.individual:
            pages.append(channels_as_markdown(channels, options.individual))
        (options.output / "drop_bounds.md").write_text("\n".join(pages))

    alone = {"bound": options.individual, "pruned": INDIVIDUAL}
    for network, seed in product(options.networks, options.seeds):
        of: dict[str, Any] = {"network": network, "seed": seed}
        for bound in options.bounds:
            if not has(rows, **of, bound=bound):
                row, removed = row_of(network, seed, bound, options.data, options.output)
                rows.append(row)
                channels += removed
                keep()
                print(network, seed, bound, flush=True)
        if options.individual:
            done = {r["layer"] for r in channels if has([r], **of, **alone)}
            for row in individual(
                network, seed, options.individual, options.data, options.output, done
            ):
                channels.append(row)
                keep()
    keep()
    print((options.output / "drop_bounds.md").read_text(), end="")


if __name__ == "__main__":
    main()
