"""What a GPU makes of it: agreement with the CPU, speed, and the published comparison.

    python -m benchmarks.gpu [--quick] [--minutes N] [--data-root FOLDER] [--output FOLDER]

One process after another, without Ray:

1. *tests*: the part of the test suite that needs a GPU.
2. *agreement*: a training and a trial on the GPU and on the CPU, in float32; counts must be equal,
   losses and accuracies close.
3. *speed*: images a second in training, their share of what a matrix product reaches, and how many
   trials side by side use the GPU best.
4. *comparison*: ResNet-20 and M-CifarNet on all of CIFAR-10, three seeds, 100 epochs in all for
   every method, by `orchestrator.trial`, one process for each network and seed. It is stopped when
   the minutes are over.

`pip install -e '.[dev,gpu]'` installs what the tests need and what tells how busy a GPU is.
`cifar10.npz` must lie in the data root. Run the same command to resume: what is done is not done
again, and trials go on from their checkpoints. Writes gpu.json and gpu.md; the comparison's tables
lie in a run folder for each process (`python -m orchestrator.report` joins them). `--quick` is the
same in a minute on the CPU, with digits.
"""

import argparse
import json
import multiprocessing
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from orchestrator.methods import method_class
from testbed.backbones import build_backbone
from testbed.cost import multiplications_by_layer
from testbed.data import DataOptions, Splits, load_splits
from testbed.machine import best_precision, device_name, set_threads
from testbed.method import Run
from testbed.prediction import evaluate
from testbed.training import Training, train

PROJECT = Path(__file__).resolve().parents[1]
LARGEST_DIFFERENCE = 0.03  # of accuracies on few images, whose sums are rounded in another order
STOPPING = 20.0  # seconds left for the trials to be stopped and the tables to be written
Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is run, in whole or in a minute's version."""

    tests: str
    """The part of the test suite that is run."""
    data: DataOptions
    networks: dict[str, dict[str, Any]]
    side_by_side: tuple[int, ...]
    timed_images: int
    matrix: int
    seeds: tuple[int, ...]
    comparison: dict[str, Any]
    """The sections of the comparison's sweep files, but for the backbone and the seed."""


def at_shares(shares: Sequence[float]) -> dict[str, Any]:
    return {"keep_multiplications": {"grid": list(shares)}}


WHOLE = Setting(
    tests="tests/testbed",
    data=DataOptions(name="cifar10", validation_share=0.1, download=False),
    networks={
        "resnet20": {"name": "resnet20"},
        "m_cifarnet": {"name": "m_cifarnet", "dropout": 0.0},
    },
    side_by_side=(1, 2, 4, 8),
    timed_images=20_000,
    matrix=8192,
    seeds=(0, 1, 2),
    comparison={
        "data": {"name": "cifar10", "validation_share": 0.1, "download": False},
        "training": {"epochs": 60, "batch_size": 128, "learning_rate": 0.2, "label_smoothing": 0.1},
        "fine_tuning": {"epochs": 40, "learning_rate": 0.1},
        "methods": {
            "dense": {},
            "vanilla": at_shares([0.25, 0.5, 0.75]),
            "l1_filter": at_shares([0.25, 0.5, 0.75]),
            "random_channels": at_shares([0.25, 0.5, 0.75]),
            "thinet": at_shares([0.25, 0.5, 0.75]),
            "static_prefix": at_shares([0.5, 0.75]),
            "rnp": at_shares([0.5, 0.75])
            | {"price": "multiplications", "rounds": 1, "learner": "cost_to_go", "steps": 300}
            | {"batch_size": 64, "q_learning_rate": 0.003, "q_weight_decay": 10.0},
            "policy_gradient": {"drop_bound": {"grid": [0.5, 2.0]}, "reward_share": 0.2},
            "magnitude": {"threshold": {"grid": [0.7, 1.2]}},
        },
        "resources": {"gpus": 1},
    },
)
QUICK = Setting(
    tests="tests/testbed/test_augmentation.py",
    data=DataOptions(name="digits", validation_share=0.2, train_images=400),
    networks={"conv": {"name": "conv", "channels": [8, 8]}},
    side_by_side=(2,),
    timed_images=512,
    matrix=256,
    seeds=(0,),
    comparison={
        "data": {"name": "digits", "validation_share": 0.2, "train_images": 400},
        "training": {"epochs": 1, "batch_size": 64},
        "fine_tuning": {"epochs": 1, "learning_rate": 0.02},
        "methods": {"dense": {}, "l1_filter": at_shares([0.5])},
    },
)


def build(setting: Setting, name: str, data: Splits) -> torch.nn.Module:
    torch.manual_seed(0)
    options = dict(setting.networks[name])
    return build_backbone(options.pop("name"), data.input_shape, data.n_classes, **options)


def tests(setting: Setting) -> Figures:
    """What pytest says of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "slow", setting.tests]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    return {"passed": found.returncode == 0, "said": found.stdout.strip().splitlines()[-1:]}


def agreement(setting: Setting, root: Path, device: torch.device) -> Figures:
    """The same float32 training and pruning on both devices."""
    data = load_splits(setting.data, root, seed=0)
    few = setting.data.model_copy(update={"train_images": min(5000, len(data.train))})
    data = load_splits(few, root, seed=0)
    settings = Training(epochs=2, batch_size=64, learning_rate=0.05, precision="float32")
    found: Figures = {}
    for name in setting.networks:
        each: dict[str, dict[str, float]] = {}
        for where in (torch.device("cpu"), device):
            network = build(setting, name, data)
            losses: list[float] = []
            report = lambda values, losses=losses: losses.append(values["train_loss"])  # noqa: E731
            train(network, data, settings, seed=0, device=where, report=report)
            run = Run(seed=0, device=where, training=settings, fine_tuning=settings)
            pruned = method_class("l1_filter")(keep_multiplications=0.5).prune(network, data, run)
            image = torch.zeros(1, *data.input_shape, device=where)
            each[str(where)] = {
                "train_loss": losses[-1],
                "dense_accuracy": evaluate(network, data.validation, data, device=where),
                "pruned_accuracy": evaluate(pruned, data.validation, data, device=where),
                "multiplications": int(multiplications_by_layer(pruned, image).total()),
            }
        cpu, other = each["cpu"], each[str(device)]
        close = abs(cpu["dense_accuracy"] - other["dense_accuracy"]) <= LARGEST_DIFFERENCE
        same = cpu["multiplications"] == other["multiplications"]
        found[name] = {**each, "agrees": bool(close and same)}
    return found


def matmul_speed(size: int, device: torch.device) -> float:
    """Multiplications a second of a square matrix product in the machine's fastest precision."""
    a = torch.randn(size, size, device=device, dtype=best_precision(device))
    begun, products = _now(device), 0
    while products < 3 or _now(device) - begun < 1.0:
        a @ a
        products += 1
    return products * size**3 / (_now(device) - begun)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def images_a_second(
    setting: Setting, root: Path, name: str, device: torch.device, processes: int = 1
) -> Figures:
    """Of training, in `processes` at the same time, all together; and how busy a GPU was."""
    context = multiprocessing.get_context("spawn")
    start, spans = context.Barrier(processes), context.SimpleQueue()
    work = (setting, root, name, str(device), start, spans)
    started = [context.Process(target=_train_timed, args=work) for _ in range(processes)]
    for process in started:
        process.start()
    busy = list[tuple[float, float | None]]()
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            start.abort()  # or the others would wait for it
        busy.append((time.time(), busy_share(device)))
        time.sleep(0.2)
    if any(process.exitcode for process in started):
        raise RuntimeError(f"A training of {name} failed; its error stands above.")
    each = [spans.get() for _ in started]
    begun, ended = min(begun for begun, *_ in each), max(ended for _, ended, _ in each)
    meanwhile = [share for at, share in busy if share is not None and begun <= at <= ended]
    return {
        "images a second": sum(n for *_, n in each) / (ended - begun),
        "GPU busy": statistics.mean(meanwhile) if meanwhile else None,
    }


def busy_share(device: torch.device) -> float | None:
    """Of the last moments, how much of the time a GPU computed; None where nothing tells."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # the extra `gpu` is not installed, or the driver does not tell
        return None


def _train_timed(
    setting: Setting, root: Path, name: str, device_said: str, start: Any, spans: Any
) -> None:
    """Puts when a training began and ended, by the machine's clock, and its images."""
    set_threads(1)
    device = torch.device(device_said)
    data = load_splits(setting.data, root, seed=0)
    network = build(setting, name, data)
    epochs = max(1, round(setting.timed_images / len(data.train)))
    settings = Training(epochs=1, batch_size=128, learning_rate=0.05)
    train(network, data, settings, seed=0, device=device)  # what a first run costs is nobody's
    start.wait()
    begun = time.time()
    train(network, data, settings.model_copy(update={"epochs": epochs}), seed=0, device=device)
    _now(device)
    spans.put((begun, time.time(), epochs * len(data.train)))


def speed(setting: Setting, root: Path, device: torch.device) -> Figures:
    """Images a second of each network, alone and side by side, beside a matrix product's speed."""
    peak = matmul_speed(setting.matrix, device)
    data = load_splits(setting.data, root, seed=0)
    image = torch.zeros(1, *data.input_shape)
    found: Figures = {"matmul multiplications a second": peak, "networks": {}}
    for name in setting.networks:
        cost = multiplications_by_layer(build(setting, name, data), image).total()
        alone = images_a_second(setting, root, name, device)["images a second"]
        found["networks"][name] = {
            "images a second": alone,
            "share of the matmul's": 3 * cost * alone / peak,  # forward, and twice as much back
        }
    first = next(iter(setting.networks))
    found["side by side"] = {
        n: images_a_second(setting, root, first, device, n) for n in setting.side_by_side
    }
    return found


def comparison(setting: Setting, root: Path, output: Path, ends: float) -> Figures:
    """Runs the sweeps until the time is over; how many trials each has completed."""
    folder = output / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for name, backbone in setting.networks.items():
        for seed in setting.seeds:
            path = folder / f"{name}_{seed}.yaml"
            sections = setting.comparison | {"backbone": backbone, "seeds": [seed]}
            path.write_text(yaml.safe_dump(sections, sort_keys=False))
            command = [sys.executable, "-m", "orchestrator.trial", str(path)]
            command += ["--output", str(folder / "runs"), "--data-root", str(root)]
            with (folder / f"{name}_{seed}.log").open("a") as log:
                processes.append(subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log))
    for process in processes:
        try:
            process.wait(max(0.0, ends - STOPPING - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it keeps its checkpoints
    statuses = [process.wait() for process in processes]
    rows = {
        table.parent.name: sum(",completed," in line for line in table.read_text().splitlines())
        for table in sorted((folder / "runs").glob("*/trials.csv"))
    }
    return {"completed trials": rows, "done": all(status == 0 for status in statuses)}


def as_markdown(figures: Figures) -> str:
    """The figures in tables."""
    lines = [f"Measured on {figures['device']}, torch {torch.__version__}.", ""]
    if "tests" in figures:
        lines += [f"Tests that need a GPU: {' '.join(figures['tests']['said'])}.", ""]
    if "agreement" in figures:
        lines += ["| network | device | loss | dense | pruned | multiplications | agrees |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | --- |"]
        for name, each in figures["agreement"].items():
            for where, own in each.items():
                if isinstance(own, dict):
                    lines.append(
                        f"| {name} | {where} | {own['train_loss']:.4f} | "
                        f"{own['dense_accuracy']:.4f} | {own['pruned_accuracy']:.4f} | "
                        f"{own['multiplications']:,} | {'yes' if each['agrees'] else 'no'} |"
                    )
        lines.append("")
    if "speed" in figures:
        lines += ["| network | images a second | share of a matrix product's |"]
        lines += ["| --- | ---: | ---: |"]
        for name, own in figures["speed"]["networks"].items():
            share = own["share of the matmul's"]
            lines.append(f"| {name} | {own['images a second']:,.0f} | {100 * share:.1f} % |")
        lines += ["", "| trials side by side | images a second, all together | GPU busy |"]
        lines += ["| ---: | ---: | ---: |"]
        for n, own in figures["speed"]["side by side"].items():
            busy = "" if own["GPU busy"] is None else f"{own['GPU busy']:.0%}"
            lines.append(f"| {n} | {own['images a second']:,.0f} | {busy} |")
        lines.append("")
    if "comparison" in figures:
        lines += ["| sweep | completed trials |", "| --- | ---: |"]
        lines += [f"| {n} | {c} |" for n, c in figures["comparison"]["completed trials"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="digits, tiny networks, one epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it stops")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="has cifar10.npz")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args(arguments)
    ends = time.monotonic() + 60 * options.minutes
    setting, device = QUICK if options.quick else WHOLE, torch.device(options.device)
    if device.type == "cpu" and not options.quick:
        parser.error("expected a GPU, and torch sees none. --quick runs a minute of it on the CPU.")
    if not options.quick and not (options.data_root / "cifar10.npz").is_file():
        parser.error(f"expected {options.data_root / 'cifar10.npz'}. Put it there.")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "gpu.json"
    figures: Figures = json.loads(file.read_text()) if file.exists() else {}
    figures["device"] = device_name(device)
    root, output = options.data_root.resolve(), options.output.resolve()
    steps: dict[str, Callable[[], Figures]] = {
        "tests": lambda: tests(setting),
        "agreement": lambda: agreement(setting, root, device),
        "speed": lambda: speed(setting, root, device),
        "comparison": lambda: comparison(setting, root, output, ends),
    }
    for name, step in steps.items():
        unfinished = name == "comparison" and not figures.get(name, {}).get("done")
        if (name not in figures or unfinished) and time.monotonic() < ends - STOPPING:
            print(name, flush=True)
            figures[name] = step()
            file.write_text(json.dumps(figures, indent=1))
            (output / "gpu.md").write_text(as_markdown(json.loads(file.read_text())))
    print((output / "gpu.md").read_text())
    agrees = all(each["agrees"] for each in figures.get("agreement", {}).values())
    return int(not agrees or not figures.get("tests", {}).get("passed", True))


if __name__ == "__main__":
    sys.exit(main())
