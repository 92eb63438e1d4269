"""What comes of the classifiers that people ship when half of their multiplications are to go.

    python -m benchmarks.torchvision_classifiers [--timm] [--models NAME ...] [--output FOLDER]

Every classifier that torchvision builds (random weights, no training, random images of the size
that it is made for) is given to `l1_filter` and `random_channels`, the smallest of each family to
`thinet` too; with `--timm` the smallest networks of 25 families of timm, to the first two. A
network must come back with at most half of its multiplications and within 2 % of that, with finite
outputs and gradients, and be the same after it was written to a file and read again. Beside it:
seconds to prune, and those that Torch-Pruning's own pruner takes for the same network (CPU time of
one thread, in one process). Each network has a process of its own, with a limit of time and memory.
Writes a csv and a Markdown table; what the csv has already is not tried again. The exit status is 1
if a network came back wrong or not at all.
"""

import argparse
import copy
import csv
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import L1Filter, RandomChannels, ThiNet
from testbed.augmentation import Augmentation
from testbed.cost import count_parameters, multiplications_by_layer
from testbed.data import Images, Splits
from testbed.machine import set_threads
from testbed.method import PruningMethod, Run
from testbed.network_file import load_network, save_network
from testbed.training import Training

CPU = torch.device("cpu")
SHARE = 0.5
LARGEST_MISS = 0.02  # relative, and below
CLASSES = 10
TRAIN_IMAGES = 160
FEW_IMAGES = 48  # that ThiNet samples outputs of, unless it needs more for its least squares
SECONDS = 2400
GIBIBYTES = 16
OPTIONS: dict[str, dict[str, Any]] = {  # their training heads would make the output no plain logits
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
METHODS = ("l1_filter", "random_channels", "thinet")
# The smallest of their families that timm 1.0 has, but for those that are torchvision's too.
TIMM = (
    "beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny", "convmixer_768_32",
    "convnextv2_atto", "cspresnet50", "deit_tiny_patch16_224", "dla46_c", "edgenext_xx_small",
    "efficientformer_l1", "fastvit_t8", "gernet_s", "ghostnet_050", "hrnet_w18_small",
    "levit_128s", "mixer_s32_224", "mobilevit_xxs", "pit_ti_224", "poolformer_s12", "pvt_v2_b0",
    "repvgg_a0", "res2net50_14w_8s", "resnest14d", "tinynet_e",
)  # fmt: skip
COLUMNS = (
    "model", "method", "outcome", "share", "seconds", "torch_pruning_seconds", "image_size",
    "parameters", "reason",
)  # fmt: skip

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
    """The network with random weights, and the side of the images that it is made for."""
    torch.manual_seed(0)
    if name in TIMM:
        network = timm.create_model(name, num_classes=CLASSES)
        size: Any = network.default_cfg
        return network, size["input_size"][1]
    network = torchvision.models.get_model(name, num_classes=CLASSES, **OPTIONS.get(name, {}))
    return network, 299 if name == "inception_v3" else 224


def drawn_data(size: int) -> Splits:
    """Images of random pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (TRAIN_IMAGES, size, size, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = Images(pixels.permute(0, 3, 1, 2), torch.arange(TRAIN_IMAGES) % CLASSES)
    few = Images(images.pixels[:2], images.labels[:2])
    names = tuple("0123456789")
    return Splits(images, few, names, Augmentation(0, False), (0.5,) * 3, (0.29,) * 3)


def method_for(name: str, network: nn.Module, data: Splits) -> PruningMethod:
    """The method of that name, by its defaults as far as the network allows.

    Where residual blocks hold all channels (RepVGG) their sums lose some too; ThiNet samples few
    images where these are enough.
    """
    found: list[L1Filter | RandomChannels | ThiNet] = []
    for scope in ("inside_blocks", "all"):
        given: dict[str, Any] = {"keep_multiplications": SHARE, "scope": scope}
        if name == "thinet":
            found += [ThiNet(**given, images=n) for n in (FEW_IMAGES, TRAIN_IMAGES)]
        else:
            kind = L1Filter if name == "l1_filter" else RandomChannels
            found.append(kind(**given))
    for method in found:
        with suppress(ValueError):
            method.check_network(network, data)
            return method
    return found[0]  # which says why not


def tried(network: nn.Module, size: int, name: str) -> Row:
    """What comes of a network: smaller, refused with a reason, or wrong."""
    settings = Training(epochs=0, precision="float32")
    run = Run(seed=0, device=CPU, training=settings, fine_tuning=settings)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    data = drawn_data(size)
    method = method_for(name, network, data)
    begun = time.process_time()
    try:
        pruned = method.prune(network, data, run)
    except ValueError as error:  # what a method refuses; anything else is a fault of ours
        return {"outcome": "refused", "reason": str(error)}
    seconds = time.process_time() - begun
    dense = multiplications_by_layer(network, images[:1]).total()
    share = multiplications_by_layer(pruned, images[:1]).total() / dense
    fault = failing(network, pruned, images)
    if not SHARE * (1 - LARGEST_MISS) <= share <= SHARE:
        fault = "not the multiplications asked for"
    outcome = "wrong" if fault else "smaller"
    row = {"outcome": outcome, "share": f"{share:.4f}", "seconds": f"{seconds:.2f}"}
    return {**row, "reason": fault or ""}


def torch_prunings_seconds(network: nn.Module, size: int) -> float | None:
    """What Torch-Pruning's group norm pruner takes for three tenths of all channels, if it can."""
    network = copy.deepcopy(network).eval()
    *_, head = (m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    begun = time.process_time()
    try:
        torch_pruning.pruner.BasePruner(
            network,
            torch.randn(1, 3, size, size),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=0.3,
            ignored_layers=[head],
        ).step()
        network(torch.randn(1, 3, size, size))
    except Exception:  # whatever it cannot do
        return None
    return time.process_time() - begun


def failing(dense: nn.Module, network: nn.Module, images: Tensor) -> str | None:
    """What is wrong with the outputs, the gradients or the file of a network, if anything is."""
    with torch.no_grad(), TemporaryDirectory() as folder:
        logits = network.eval()(images)
        save_network(network, Path(folder) / "network.safetensors")
        again = load_network(Path(folder) / "network.safetensors", dense).eval()
        if not torch.equal(again(images), logits):
            return "other outputs after it was written and read"
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
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))  # what a first run costs is nobody's
        seconds = torch_prunings_seconds(network, size)
        about["torch_pruning_seconds"] = "" if seconds is None else f"{seconds:.2f}"
        for method in METHODS:
            if method != "thinet" or name in smallest_of_families():
                rows.send({**about, "method": method, **tried(network, size, method)})
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
    """The medians, and a line for each network: the share that is left, or why nothing is."""
    lines = [
        *summary(rows),
        "",
        f"| network | image | {' | '.join(f'`{m}`' for m in METHODS)} | seconds | "
        "Torch-Pruning's | why not |",
        "| --- | ---: | " + "---: | " * len(METHODS) + "---: | ---: | --- |",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = {row.get("method"): row for row in rows if row["model"] == name}
        cells = [_cell(own.get(method)) for method in METHODS]
        reasons = dict.fromkeys(row["reason"] for row in own.values() if row["reason"])
        first = next(iter(own.values()))
        times = [first.get("seconds", ""), first.get("torch_pruning_seconds", "")]
        why = " / ".join(reasons).replace("|", "\\|").replace("\n", " ")
        cells = [str(first.get("image_size", "")), *cells, *times, why]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row]) -> list[str]:
    """How many networks each method pruned, and how long it took beside Torch-Pruning."""
    found = []
    for method in METHODS:
        own = [row for row in rows if row.get("method") == method]
        smaller = [row for row in own if row["outcome"] == "smaller"]
        if not smaller:
            continue
        median = statistics.median(float(row["seconds"]) for row in smaller)
        found.append(f"- `{method}`: {len(smaller)} of {len(own)}, median {median:.2f} s")
        theirs = [row for row in smaller if row["torch_pruning_seconds"]]
        if method != "thinet" and theirs:
            ratios = [float(r["seconds"]) / float(r["torch_pruning_seconds"]) for r in theirs]
            found[-1] += (
                f"; {statistics.median(ratios):.2f} times what Torch-Pruning takes for the "
                f"{len(theirs)} that it prunes too"
            )
    return found


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


def write(rows: Sequence[Row], folder: Path, table: str) -> None:
    """Both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{table}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{table}.md").write_text(as_markdown(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--timm", action="store_true", help="networks of timm")
    parser.add_argument("--models", nargs="+", choices=[*classifiers(), *TIMM])
    parser.add_argument("--output", type=Path, default=Path("runs"), help="where the tables go")
    options = parser.parse_args()
    known = list(TIMM) if options.timm else classifiers()
    table = "timm_classifiers" if options.timm else "torchvision_classifiers"
    rows = read(options.output / f"{table}.csv")
    for name in options.models or known:
        if name not in {row["model"] for row in rows}:
            rows += rows_of(name)
            # In order, and after each network, so that a stopped run leaves what it found.
            rows.sort(key=lambda row: known.index(row["model"]))
            write(rows, options.output, table)
            own = [row for row in rows if row["model"] == name]
            print(name, *(row["outcome"] for row in own), flush=True)
    print(*summary(rows), sep="\n")
    return int(any(row["outcome"] != "smaller" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
