"""Cascades beside thin networks of equal mean cost, and of equal training, on all of CIFAR-10.

    python -m benchmarks.cascade_frontier --data FOLDER [--epochs N] [--seed N] [--minutes N]

Trains what it lacks of the networks, each from scratch as `vanilla` trains it, and keeps them. It
stops after so many minutes, at the end of an epoch; the same command resumes. Then decisions are
chosen on half of the validation images, as `cascade`, `cascade_random` and `second_look` choose
them, and every row is judged on the test images. Writes `cascade.csv` and `cascade.md`. `vanilla`
stands there a second time where a network was trained with as many multiplications as all stages of
the cascade together.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import Vanilla
from baselines.runtime.cascade_network import CascadeNetwork
from baselines.runtime.cascade_random import weights_for_all
from baselines.runtime.image_hash import uniform_of_images
from baselines.runtime.thresholds import Decisions, chosen_decisions
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications, measure_latency, multiplications_by_layer
from testbed.data import DataOptions, Images, Splits, load_splits, load_test_images
from testbed.held_back import divided
from testbed.looks import average, confidence_of
from testbed.machine import set_threads, tune_malloc
from testbed.method import Run
from testbed.network_file import load_network, save_network
from testbed.prediction import predict
from testbed.training import Training

CPU = torch.device("cpu")
BACKBONE = {"channels": [32, 64, 96, 128], "pool_after": [1, 2, 3, 4]}  # of sweeps/cifar_frontier
STAGES = (0.12, 0.41)
BUDGETS = (0.28, 0.41, 0.58, 0.75)
LOOKS_TWICE = {0.41: 0.28, 0.58: 0.41, 0.75: 0.58}  # budget -> the network of `second_look`
LONGER = (0.41, 0.58, 0.28)  # budgets at which `vanilla` also gets a cascade's training
CHOICE_SHARE = 0.5
COUNTED = 8  # test images whose multiplications are counted one by one, to check the sums

Look = tuple[float, int, bool]
"""A network's share and epochs, and whether it sees the mirrored image."""


class Networks:
    """Networks trained from scratch as `vanilla` trains them, each once, kept in a folder."""

    def __init__(self, data: Splits, folder: Path, seed: int, seconds: float) -> None:
        self.data, self._folder, self._seed = data, folder, seed
        self._ends = time.monotonic() + seconds
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._dense = build_backbone("conv", data.input_shape, data.n_classes, **BACKBONE)

    def path(self, share: float, epochs: int) -> Path:
        return self._folder / f"{share:.4g}_{epochs}.safetensors"

    def get(self, share: float, epochs: int) -> nn.Module:
        """The network of a share of the dense multiplications, trained for so many epochs."""
        path = self.path(share, epochs)
        if not path.exists():
            settings = Training(epochs=epochs, batch_size=128, learning_rate=0.2)
            run = Run(
                seed=self._seed,
                device=CPU,
                training=settings,
                fine_tuning=settings.model_copy(update={"epochs": 0}),
                report=partial(self._report, path.stem),
                folder=path.with_suffix(""),
            )
            method = Vanilla(keep_multiplications=share)
            save_network(method.prune(self._dense, self.data, run), path)
        return load_network(path, self._dense).eval()

    def _report(self, name: str, values: Mapping[str, float]) -> None:
        print(name, dict(values), flush=True)
        if time.monotonic() > self._ends and "epoch" in values:
            sys.exit("The minutes are over: run the same command to resume.")

    def cost(self, share: float, epochs: int) -> int:
        """Multiplications of an image."""
        black = torch.zeros(1, *self.data.input_shape)
        return multiplications_by_layer(self.get(share, epochs), black).total()

    def looks(self, wanted: Sequence[Look], images: Images) -> Tensor:
        """(looks, n, classes) log-probabilities."""
        return torch.stack([self._answers(look, images) for look in wanted])

    @cache  # noqa: B019 - one instance
    def _answers(self, look: Look, images: Images) -> Tensor:
        share, epochs, mirrored = look
        model = _Look(CascadeNetwork([self.get(share, epochs)], mirror=True), int(mirrored))
        return predict(model, images, self.data, device=CPU).log_softmax(dim=1)


class _Look(nn.Module):
    def __init__(self, network: CascadeNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, images: Tensor) -> Tensor:
        return self.network.look(self.number, images)


@dataclass(frozen=True)
class Row:
    """One method at one budget."""

    method: str
    budget: float
    epochs: int
    looks: Sequence[Look]
    decisions: Decisions | None = None
    drawn: bool = False


def rows(networks: Networks, epochs: int, choosing: Images) -> Iterator[Row]:
    """All whose networks are trained, with their decisions."""
    for share in sorted({*STAGES, *BUDGETS, 1.0}):
        if networks.path(share, epochs).exists():
            yield Row("vanilla", share, epochs, [(share, epochs, False)])
    whole = epochs * (sum(STAGES) + 1)
    for share in LONGER:
        longer = round(whole / share)
        if networks.path(share, longer).exists():
            yield Row("vanilla, trained longer", share, longer, [(share, longer, False)])
    stages = [(share, epochs, False) for share in (*STAGES, 1.0)]
    dense = networks.cost(1.0, epochs)
    for name, looks in (("cascade", stages), ("cascade, mirror", [*stages, (1.0, epochs, True)])):
        given = networks.looks(looks, choosing)
        costs = [networks.cost(share, epochs) for share, *_ in looks]
        for budget in BUDGETS:
            decisions = chosen_decisions(given, choosing.labels, costs, budget * dense)
            yield Row(name, budget, epochs, looks, decisions)
            if name == "cascade":
                weights = tuple(weights_for_all(given, choosing.labels))
                drawn = Decisions(decisions.reached[1:], weights, decisions.reached, 0, 0.0)
                yield Row("cascade_random", budget, epochs, looks, drawn, drawn=True)
    for budget, share in LOOKS_TWICE.items():
        if not networks.path(share, epochs).exists():
            continue
        looks = [(share, epochs, False), (share, epochs, True)]
        cost = networks.cost(share, epochs)
        given = networks.looks(looks, choosing)
        decisions = chosen_decisions(given, choosing.labels, [cost, cost], budget * dense)
        yield Row("second_look", budget, epochs, looks, decisions)


def judged(row: Row, networks: Networks, images: Images, seed: int) -> tuple[Tensor, float]:
    """Which images are classified right, (n,) bool, and the mean multiplications."""
    looks = networks.looks(row.looks, images)
    costs = [networks.cost(share, epochs) for share, epochs, _ in row.looks]
    answers, waiting = looks[0], torch.ones(len(images), dtype=torch.bool)
    spent = torch.full((len(images),), float(costs[0]))
    if row.decisions is not None:
        for number, threshold in enumerate(row.decisions.thresholds, 1):
            confidences = confidence_of(answers, "margin")
            if row.drawn:
                confidences = uniform_of_images(networks.data.normalised(images)[:], seed)
            waiting = waiting & (confidences < threshold)
            further = average(answers, looks[number], row.decisions.weights[number])
            answers = torch.where(waiting[:, None], further, answers)
            spent += costs[number] * waiting
    return answers.argmax(dim=1) == images.labels, spent.double().mean().item()


def network_of(row: Row, networks: Networks, seed: int) -> nn.Module:
    """The network itself."""
    plain = [networks.get(share, epochs) for share, epochs, mirrored in row.looks if not mirrored]
    if row.decisions is None:
        return plain[0]
    mirror = len(plain) < len(row.looks)
    network = CascadeNetwork(plain, "drawn" if row.drawn else "margin", mirror).eval()
    network.thresholds.copy_(torch.tensor(row.decisions.thresholds))
    network.weights.copy_(torch.tensor(row.decisions.weights))
    network.seed.fill_(seed)
    return network


def table(networks: Networks, epochs: int, seed: int, test: Images) -> pd.DataFrame:
    """A row for each method and budget."""
    choosing, held = divided(networks.data, CHOICE_SHARE, "choice_share")
    dense = networks.cost(1.0, epochs)
    found, right, built = [], {}, {}
    for row in rows(networks, epochs, choosing):
        name = f"{row.method} {row.budget:g}"
        correct, multiplications = judged(row, networks, test, seed)
        chosen, _ = judged(row, networks, held.validation, seed)
        right[name], built[name] = correct, network_of(row, networks, seed)
        trained = {(share, each) for share, each, _ in row.looks}
        n_train = len(networks.data.train)
        spent = sum(each * n_train * networks.cost(share, each) for share, each in trained)
        than = right.get(f"vanilla {row.budget:g}", torch.full((len(test),), math.nan))
        ahead = correct.double() - than.double()
        found.append(
            {
                "method": row.method,
                "budget": row.budget,
                "seed": seed,
                "epochs_each": row.epochs,
                "training_epochs": sum(each for _, each in trained),
                "training_multiplications": spent,
                "multiplications": multiplications,
                "share": multiplications / dense,
                "val_accuracy": chosen.double().mean().item(),
                "test_accuracy": correct.double().mean().item(),
                "ahead_of_vanilla": ahead.mean().item(),
                "ahead_standard_error": ahead.std().item() / math.sqrt(len(ahead)),
                "reached": " ".join(f"{r:.3f}" for r in row.decisions.reached)
                if row.decisions
                else "",
                "weights": " ".join(f"{w:.1f}" for w in row.decisions.weights)
                if row.decisions
                else "",
            }
        )
    inputs = networks.data.normalised(test[:2048])[:]
    latencies = measure_latency(built, inputs, (1, 128), seconds=0.2)
    for row_, (name, network) in zip(found, built.items(), strict=True):
        for size in (1, 128):
            row_[f"latency_ms_batch{size}"] = latencies[name, size].median_ms
        _check_cost(network, inputs[:COUNTED], row_)
    return pd.DataFrame(found)


def _check_cost(network: nn.Module, inputs: Tensor, row: dict[str, object]) -> None:
    """Counts the operations that run on some images, beside the sum of the stages' costs."""
    counted = count_multiplications(network, inputs).per_image
    if isinstance(network, CascadeNetwork):
        black = inputs[:1]
        costs = [multiplications_by_layer(each, black).total() for each in network.networks]
        costs += costs[-1:] * network.mirror
        sums = torch.tensor(costs).cumsum(0)
        assert set(counted.tolist()) <= set(sums.tolist()), row
    else:
        assert counted.double().mean().item() == row["multiplications"], row


def page(frame: pd.DataFrame) -> str:
    """The table for people."""
    lines = [
        "# Cascades on CIFAR-10: the 11.2 M network of `sweeps/cifar_frontier.yaml`",
        "",
        "Test accuracy; points ahead of `vanilla` at the same budget, each network trained for as "
        "many epochs, with the standard error of the paired difference over the 10,000 test "
        "images; latencies on one thread, all contenders in turn.",
        "",
        "| method | budget | share on test images | test accuracy | ahead | epochs trained "
        "| training multiplications | ms, batch 1 | ms, batch 128 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in frame.sort_values(["budget", "seed"], kind="stable").iterrows():
        ahead = ""
        if row.method != "vanilla" and math.isfinite(row.ahead_of_vanilla):
            ahead = f"{100 * row.ahead_of_vanilla:+.1f} ± {100 * row.ahead_standard_error:.1f}"
        lines.append(
            f"| {row.method} | {row.budget:.0%} | {row.share:.1%} | {row.test_accuracy:.4f} "
            f"| {ahead} | {row.training_epochs} "
            f"| {row.training_multiplications / 1e12:.1f} T | {row.latency_ms_batch1:.2f} "
            f"| {row.latency_ms_batch128:.1f} |"
        )
    return "\n".join(lines) + "\n"


def planned(epochs: int) -> list[tuple[float, int]]:
    """Shares and epochs of all networks, in the order in which they are trained."""
    whole = epochs * (sum(STAGES) + 1)
    usual = [(share, epochs) for share in (*STAGES, 1.0, *BUDGETS)]
    return list(dict.fromkeys([*usual, *((share, round(whole / share)) for share in LONGER)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/cascade"), help="of the networks")
    parser.add_argument("--output", type=Path, default=Path("results/cascade"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--no-training", action="store_true", help="only what is trained already")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    data = load_splits(DataOptions(name="cifar10"), options.data, options.seed)
    folder = options.runs / f"seed{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    networks = Networks(data, folder, options.seed, 60 * options.minutes)
    if not options.no_training:
        for share, epochs in planned(options.epochs):
            networks.get(share, epochs)
    test = load_test_images(DataOptions(name="cifar10"), options.data)
    frame = table(networks, options.epochs, options.seed, test)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "cascade.csv"
    if path.exists():
        earlier = pd.read_csv(path)
        frame = pd.concat([earlier[earlier["seed"] != options.seed], frame])
    frame.to_csv(path, index=False)
    (options.output / "cascade.md").write_text(page(frame))


if __name__ == "__main__":
    main()
