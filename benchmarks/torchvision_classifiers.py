"""What comes of torchvision's image classifiers when half of their multiplications are to go.

    python -m benchmarks.torchvision_classifiers [--models NAME ...] [--output FOLDER]

Every classifier that torchvision builds offline (random weights, no training, random images of the
smallest size it takes) is given to `l1_filter` and `random_channels`, the smallest of each family
to `thinet` too. A network must come back with the multiplications asked for within 10 % and with
finite outputs and gradients; or an error must say which layers keep their channels and why. Each
network has a process of its own, with a limit of time and memory. Writes
`torchvision_classifiers.csv` and `.md`; what the csv has already is not tried again. The exit
status is 1 if a network came back wrong.
"""

import argparse
import csv
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import L1Filter, RandomChannels, ThiNet
from testbed.augmentation import Augmentation
from testbed.cost import count_parameters, multiplications_by_layer
from testbed.data import Images, Splits
from testbed.machine import set_threads
from testbed.method import PruningMethod, Run
from testbed.training import Training

CPU = torch.device("cpu")
SHARE = 0.5
LARGEST_MISS = 0.1  # relative
SIZES = (64, 75, 96, 128, 224)  # of an image's side, in pixels; the first that a network takes
CLASSES = 10
TRAIN_IMAGES = 128  # of which ThiNet samples 10 outputs each
SECONDS = 3600
GIBIBYTES = 16
OPTIONS: dict[str, dict[str, Any]] = {  # their training heads would make the output no plain logits
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
METHODS: dict[str, PruningMethod] = {
    "l1_filter": L1Filter(keep_multiplications=SHARE),
    "random_channels": RandomChannels(keep_multiplications=SHARE),
    "thinet": ThiNet(keep_multiplications=SHARE),
}
TABLE = "torchvision_classifiers"
COLUMNS = ("model", "method", "outcome", "share", "image_size", "parameters", "reason")

Row = dict[str, Any]


def classifiers() -> list[str]:
    """The names of all of torchvision's image classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def smallest_of_families() -> set[str]:
    """Of each module of torchvision's the network with the fewest parameters, as published."""
    smallest: dict[str, tuple[int, str]] = {}
    for name in classifiers():
        family = torchvision.models.get_model_builder(name).__module__
        weights = torchvision.models.get_model_weights(name).DEFAULT
        size = (weights.meta["num_params"], name)
        smallest[family] = min(size, smallest.get(family, size))
    return {name for _, name in smallest.values()}


def built(name: str) -> tuple[nn.Module, int]:
    """The network with random weights, and the side of the smallest images that it takes."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=CLASSES, **OPTIONS.get(name, {}))
    for size in SIZES[:-1]:
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(2, 3, size, size))
            return network, size
        except (RuntimeError, ValueError, AssertionError):  # too small for it
            continue
    return network, SIZES[-1]


def drawn_data(size: int) -> Splits:
    """Images of random pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (TRAIN_IMAGES, size, size, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = Images(pixels.permute(0, 3, 1, 2), torch.arange(TRAIN_IMAGES) % CLASSES)
    few = Images(images.pixels[:2], images.labels[:2])
    names = tuple("0123456789")
    return Splits(images, few, names, Augmentation(0, False), (0.5,) * 3, (0.29,) * 3)


def tried(network: nn.Module, size: int, method: PruningMethod) -> Row:
    """What comes of a network: smaller, refused with a reason, or wrong."""
    settings = Training(epochs=0, precision="float32")
    run = Run(seed=0, device=CPU, training=settings, fine_tuning=settings)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    try:
        pruned = method.prune(network, drawn_data(size), run)
    except ValueError as error:  # what a method refuses; anything else is a fault of ours
        return {"outcome": "refused", "reason": str(error)}
    dense = multiplications_by_layer(network, images).total()
    share = multiplications_by_layer(pruned, images).total() / dense
    fault = failing(pruned, images)
    if abs(share - SHARE) > LARGEST_MISS * SHARE:
        fault = "not the multiplications asked for"
    outcome = "wrong" if fault else "smaller"
    return {"outcome": outcome, "share": f"{share:.4f}", "reason": fault or ""}


def failing(network: nn.Module, images: Tensor) -> str | None:
    """What is wrong with the outputs or gradients of a network, if anything is."""
    with torch.no_grad():
        logits = network.eval()(images)
    if logits.shape != (len(images), CLASSES) or not logits.isfinite().all():
        return f"outputs of shape {tuple(logits.shape)}, or not finite"
    network.train()(images).square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
        return "gradients that are not finite"
    return None if any(gradient is not None for gradient in gradients) else "no gradients"


def try_one(name: str, rows: Connection) -> None:
    """Sends a row for each method; runs in a process of its own."""
    set_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES * 2**30, GIBIBYTES * 2**30))
    about: Row = {"model": name}
    try:
        network, size = built(name)
        about |= {"image_size": size, "parameters": count_parameters(network)}
        for method, pruning in METHODS.items():
            if method != "thinet" or name in smallest_of_families():
                rows.send({**about, "method": method, **tried(network, size, pruning)})
    except Exception as error:  # the table is to show it, whatever it is
        rows.send({**about, "outcome": "wrong", "reason": f"{type(error).__name__}: {error}"})


def rows_of(name: str) -> list[Row]:
    """One network's rows, the last of them with what stopped its process, if anything did."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # Forked, as this process has imported everything and computed nothing.
    process = multiprocessing.get_context("fork").Process(target=try_one, args=(name, theirs))
    process.start()
    theirs.close()
    rows: list[Row] = []
    stopped = ""
    ends = time.monotonic() + SECONDS
    try:
        while ours.poll(max(0.0, ends - time.monotonic())):
            rows.append(ours.recv())
        stopped = f"it took over {SECONDS} s"
        process.kill()
    except EOFError:  # it has ended
        process.join()
        if process.exitcode:
            stopped = f"its process ended with status {process.exitcode}"
    if stopped:
        rows.append({"model": name, "outcome": "wrong", "reason": stopped})
    return rows


def as_markdown(rows: Sequence[Row]) -> str:
    """A line for each network: the share that is left, or why nothing is."""
    lines = [
        f"| network | image | {' | '.join(f'`{m}`' for m in METHODS)} | why not |",
        "| --- | ---: | " + "---: | " * len(METHODS) + "--- |",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = {row.get("method"): row for row in rows if row["model"] == name}
        cells = [_cell(own.get(method)) for method in METHODS]
        reasons = dict.fromkeys(row["reason"] for row in own.values() if row["reason"])
        size = next(iter(own.values())).get("image_size", "")
        why = " / ".join(reasons).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {size} | {' | '.join(cells)} | {why} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return row["share"] if row["outcome"] == "smaller" else str(row["outcome"])


def read(table: Path) -> list[Row]:
    """The rows of an earlier run that was stopped."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row], folder: Path) -> None:
    """Both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{TABLE}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{TABLE}.md").write_text(as_markdown(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=classifiers(), default=classifiers())
    parser.add_argument("--output", type=Path, default=Path("runs"), help="where the tables go")
    options = parser.parse_args()
    rows = read(options.output / f"{TABLE}.csv")
    for name in options.models:
        if name not in {row["model"] for row in rows}:
            rows += rows_of(name)
            # In order, and after each network, so that a stopped run leaves what it found.
            rows.sort(key=lambda row: classifiers().index(row["model"]))
            write(rows, options.output)
            own = [row for row in rows if row["model"] == name]
            print(name, *(row["outcome"] for row in own), flush=True)
    return int(any(row["outcome"] == "wrong" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
