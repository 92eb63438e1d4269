"""Our channel methods beside Torch-Pruning's pruner and FastNAS of NVIDIA's Model Optimizer.

    python -m benchmarks.peers [--quick] [--seeds N] [--processes N] [--data-root FOLDER]

Each method gets the same dense networks, images, seeds and fine-tuning epochs, and is to leave at
most half of the multiplications, by our counter. The networks are judged on validation images that
no method sees. "Seconds to prune" is CPU time of one thread, without fine-tuning and the
evaluations that go with it. The peers are methods like any user's: `benchmarks/peer_methods/`.
FastNAS needs `pip install -e '.[peers]'` and is left out, with the reason, where that is missing.

Writes peers.csv and peers.md. What was measured before is kept in the output folder and not
measured again: the same command resumes. The exit status is 1 if one of our methods failed.
"""

import argparse
import csv
import json
import multiprocessing
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from orchestrator.methods import method_class
from testbed.backbones import build_backbone
from testbed.cost import count_parameters, multiplications_by_layer
from testbed.data import DataOptions, Images, Splits, load_splits
from testbed.machine import device_name, set_threads, tune_malloc
from testbed.method import Run
from testbed.network_file import load_network, save_network
from testbed.prediction import evaluate
from testbed.resnet import projection_shortcut, resnet
from testbed.training import Training, train

CPU = torch.device("cpu")
SHARE = 0.5
DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """What every method gets."""

    data: str
    train_images: int
    scoring_images: int  # validation images that a method may look at
    judging_images: int
    training: Training  # of the dense networks
    fine_tuning: Training
    networks: tuple[str, ...]
    width: float = 1.0  # of the ResNet

    def splits(self, root: Path, seed: int) -> tuple[Splits, Images]:
        """What methods see, and the images that they are judged on."""
        held = self.scoring_images + self.judging_images
        images = self.train_images + held
        options = DataOptions(
            name=self.data, train_images=images, validation_share=held / images, download=False
        )
        data = load_splits(options, root, seed)
        order = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(seed))
        seen, judging = order.split([self.scoring_images, len(order) - self.scoring_images])
        return replace(data, validation=data.validation.select(seen)), data.validation.select(
            judging
        )


FULL = Setting(
    "cifar10",
    train_images=5000,
    scoring_images=1000,
    judging_images=4000,
    training=Training(epochs=10, batch_size=64, learning_rate=0.05),
    fine_tuning=Training(epochs=3, batch_size=64, learning_rate=0.025),
    networks=("ResNet-20", "VGG-16, half width"),
)
QUICK = Setting(
    "digits",
    train_images=400,
    scoring_images=100,
    judging_images=200,
    training=Training(epochs=1),
    fine_tuning=Training(epochs=1),
    networks=("ResNet-20",),
    width=0.5,
)


@dataclass(frozen=True)
class Contender:
    """A method under the name that the table gives it."""

    method: str  # of the registry, or package.module:Class
    options: Mapping[str, Any]


OURS = {
    "l1_filter, inside blocks": Contender("l1_filter", {"scope": "inside_blocks"}),
    "l1_filter, all groups": Contender("l1_filter", {"scope": "all"}),
    "random_channels, all groups": Contender("random_channels", {"scope": "all"}),
    "thinet, inside blocks": Contender("thinet", {"scope": "inside_blocks"}),
    "thinet, all groups": Contender("thinet", {"scope": "all"}),
}
PEERS = {
    "Torch-Pruning, one ratio": Contender("benchmarks.peer_methods.group_norm:GroupNorm", {}),
    "Torch-Pruning, one ranking": Contender(
        "benchmarks.peer_methods.group_norm:GroupNorm", {"ranks": True}
    ),
    "FastNAS": Contender("benchmarks.peer_methods.fastnas:FastNAS", {}),
}


def contenders(network: str) -> dict[str, Contender]:
    """Those of one network; on a chain of convs both scopes are the same."""
    chain = network.startswith("VGG")
    return {name: c for name, c in OURS.items() if not (chain and "inside" in name)} | PEERS


GIVEN = """\
What each is given beside the dense network, the training images and the fine-tuning:

- `l1_filter`, `random_channels`, `thinet`: `keep_multiplications: 0.5`, otherwise their defaults.
- Torch-Pruning: its group L2 norm and defaults; the ratio by bisection, ten steps. *One ratio*
  thins every layer alike, *one ranking* is its `global_pruning`.
- FastNAS: its defaults, but multiples of half the channels of the narrowest conv (8 of the ResNet,
  16 of the VGG) where they say 32; scores on the {scoring:,} validation images, of which the others
  make no use; batch norms calibrated on 50 batches of 16 training images.

The ResNet's shortcuts are projections: Torch-Pruning cannot thin those that pad. Seconds are CPU
time of one thread; "training" is the fine-tuning's, with an evaluation after each epoch. The epochs
of ThiNet are spread over its groups.
"""

Row = dict[str, Any]


class TimedRun(Run):
    """A run that knows what fine-tuning took."""

    fine_tuning_seconds = 0.0

    def fine_tune(self, *args: Any, **options: Any) -> None:
        begun = time.process_time()
        super().fine_tune(*args, **options)
        self.fine_tuning_seconds += time.process_time() - begun


def built(network: str, setting: Setting, data: Splits, seed: int) -> nn.Module:
    """The network, with weights that the seed draws.

    The ResNet's shortcuts are projections, for a reason that the table names.
    """
    torch.manual_seed(seed)
    if network.startswith("VGG"):
        return build_backbone("vgg16", data.input_shape, data.n_classes, width=0.5)
    return resnet(
        data.input_shape[0],
        data.n_classes,
        channels=[round(setting.width * channels) for channels in (16, 32, 64)],
        blocks=3,
        make_shortcut=projection_shortcut,
    )


def multiplications(network: nn.Module, data: Splits) -> int:
    return int(multiplications_by_layer(network, torch.zeros(1, *data.input_shape)).total())


def dense_network(
    network: str, setting: Setting, data: Splits, judging: Images, seed: int, folder: Path
) -> nn.Module:
    """Trained, or as an earlier run trained it."""
    dense = built(network, setting, data, seed)
    file = folder / f"{network} {seed}.safetensors"
    if file.exists():
        return load_network(file, dense)
    begun = time.process_time()
    train(dense, data, setting.training, seed=seed, device=CPU)
    row = {"val_accuracy": evaluate(dense, judging, data, device=CPU), "share": 1.0}
    row |= {"multiplications": multiplications(dense, data), "parameters": count_parameters(dense)}
    row |= {"epochs": setting.training.epochs, "training_seconds": time.process_time() - begun}
    save_network(dense, file)
    keep({"network": network, "method": DENSE, "seed": seed, **row}, folder)
    return dense


def pruned_by(
    contender: Contender,
    dense: nn.Module,
    setting: Setting,
    data: Splits,
    judging: Images,
    seed: int,
) -> Row:
    """What comes of a dense network by one method, or the reason why nothing does."""
    run = TimedRun(
        seed=seed,
        device=CPU,
        training=setting.training,
        fine_tuning=setting.fine_tuning,
    )
    try:
        method = method_class(contender.method)(keep_multiplications=SHARE, **contender.options)
        begun = time.process_time()
        network = method.prune(dense, data, run)
        seconds = time.process_time() - begun - run.fine_tuning_seconds
    except Exception as error:  # the table is to show it, whatever it is
        return {"reason": f"{type(error).__name__}: {error}"}
    cost = multiplications(network, data)
    return {
        "val_accuracy": evaluate(network, judging, data, device=CPU),
        "share": cost / multiplications(dense, data),
        "multiplications": cost,
        "parameters": count_parameters(network),
        "seconds_to_prune": seconds,
        "epochs": run.epochs_spent,
        "training_seconds": run.fine_tuning_seconds,
    }


def compare(job: tuple[str, int], setting: Setting, root: Path, folder: Path) -> None:
    """All methods on one network with one seed."""
    network, seed = job
    data, judging = setting.splits(root, seed)
    dense = dense_network(network, setting, data, judging, seed, folder)
    evaluate(dense, data.validation, data, device=CPU)  # what a first run costs is nobody's
    for name, contender in contenders(network).items():
        if not row_file(folder, network, name, seed).exists():
            row = pruned_by(contender, dense, setting, data, judging, seed)
            keep({"network": network, "method": name, "seed": seed, **row}, folder)


def prepare_process() -> None:
    set_threads(1)
    tune_malloc()
    warnings.simplefilter("ignore")


def row_file(folder: Path, network: str, method: str, seed: int) -> Path:
    return folder / f"{network} {method} {seed}.json"


def keep(row: Row, folder: Path) -> None:
    file = row_file(folder, row["network"], row["method"], row["seed"])
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(row))
    unfinished.rename(file)
    print(json.dumps(row), flush=True)


def read(setting: Setting, folder: Path) -> list[Row]:
    """All rows, in the order of the table."""
    order = {
        (network, method): place
        for network in setting.networks
        for place, method in enumerate([DENSE, *contenders(network)])
    }
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    networks = setting.networks.index
    rows.sort(key=lambda r: (networks(r["network"]), order[r["network"], r["method"]], r["seed"]))
    return rows


HEADINGS = (
    "method", "accuracy, %", "multiplications", "parameters", "seconds to prune", "epochs",
    "training, s", "n",
)  # fmt: skip


def as_markdown(rows: Sequence[Row], setting: Setting) -> str:
    """A table for each network: means over seeds, and deviations where there are several."""
    lines = [
        f"{setting.data}: {setting.train_images:,} training images, dense networks trained for "
        f"{setting.training.epochs} epochs, fine-tuning {setting.fine_tuning.epochs}; judged on "
        f"{setting.judging_images:,} validation images that no method sees. {versions()}.",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        lines += [
            "",
            f"### {network}",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "| --- |" + " ---: |" * (len(HEADINGS) - 1),
        ]
        of_network = [row for row in rows if row["network"] == network]
        for method in dict.fromkeys(row["method"] for row in of_network):
            lines.append(_line(method, [row for row in of_network if row["method"] == method]))
    given = GIVEN.format(scoring=setting.scoring_images)
    return "\n".join(lines) + f"\n\n{given}"


def _line(method: str, rows: Sequence[Row]) -> str:
    done = [row for row in rows if "val_accuracy" in row]
    if not done:
        return f"| {method} | skipped: {' '.join(rows[0]['reason'].split())} | | | | | | 0 |"

    def mean(column: str) -> float:
        return statistics.mean(row[column] for row in done)

    accuracies = [100 * row["val_accuracy"] for row in done]
    accuracy = f"{statistics.mean(accuracies):.1f}"
    if len(accuracies) > 1:
        accuracy += f" ± {statistics.stdev(accuracies):.1f}"
    seconds = f"{mean('seconds_to_prune'):.2f}" if "seconds_to_prune" in done[0] else ""
    cells = [
        method,
        accuracy,
        f"{mean('multiplications') / 1e6:.2f} M ({100 * mean('share'):.1f} %)",
        f"{mean('parameters') / 1e3:,.0f} k",
        seconds,
        f"{mean('epochs'):g}",
        f"{mean('training_seconds'):.0f}",
        str(len(done)),
    ]
    return f"| {' | '.join(cells)} |"


def versions() -> str:
    """The machine and the packages that the figures come from."""
    found = [f"{device_name(CPU)}, 1 thread, Python {platform.python_version()}"]
    for package in ("torch", "torch-pruning", "nvidia-modelopt"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


COLUMNS = (
    "network", "method", "seed", "val_accuracy", "share", "multiplications", "parameters",
    "seconds_to_prune", "epochs", "training_seconds", "reason",
)  # fmt: skip


def write(rows: Sequence[Row], setting: Setting, folder: Path) -> None:
    with (folder / "peers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "peers.md").write_text(as_markdown(rows, setting))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="digits, a tiny ResNet, one epoch")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="has cifar10.npz")
    parser.add_argument("--output", type=Path, help="runs/peers, or runs/peers_quick")
    options = parser.parse_args(arguments)
    setting = QUICK if options.quick else FULL
    folder = options.output or Path("runs") / ("peers_quick" if options.quick else "peers")
    folder.mkdir(parents=True, exist_ok=True)
    same = folder / "setting.txt"
    if same.exists() and same.read_text() != str(setting):
        parser.error(f"{folder} holds rows of other settings than these. Give another --output.")
    same.write_text(str(setting))
    jobs = [(network, seed) for seed in range(options.seeds) for network in setting.networks]
    work = partial(compare, setting=setting, root=options.data_root, folder=folder)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, prepare_process) as pool:
        for _ in pool.map(work, jobs):
            write(read(setting, folder), setting, folder)
    rows = read(setting, folder)
    print(as_markdown(rows, setting))
    return int(any(row["method"] in OURS and "reason" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
