"""Cascades beside thin networks of equal mean cost, and of equal training, on all of CIFAR-10.

python -m benchmarks.cascade_frontier --data FOLDER [--epochs N] [--seed N] [--output FOLDER]

"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import Vanilla
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Splits, load_splits
from testbed.machine import set_threads, tune_malloc
from testbed.method import Run
from testbed.network_file import load_network, save_network
from testbed.training import Training

CPU = torch.device("cpu")
BACKBONE = {"channels": [32, 64, 96, 128], "pool_after": [1, 2, 3, 4]}  # of sweeps/cifar_frontier
STAGES = (0.12, 0.41)
BUDGETS = (0.28, 0.41, 0.58, 0.75)
SECOND_LOOKS = 0.35  # share of the images that `second_look` mirrors
LONGER = (0.41, 0.58, 0.28)  # budgets at which `vanilla` also gets a cascade's training


class Networks:
    """Networks trained from scratch as `vanilla` trains them, each once, kept in a folder."""

    def __init__(self, data: Splits, folder: Path, seed: int) -> None:
        self._data, self._folder, self._seed = data, folder, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = build_backbone("conv", data.input_shape, data.n_classes, **BACKBONE)

    def get(self, share: float, epochs: int) -> nn.Module:
        """The network of a share of the dense multiplications, trained for so many epochs."""
        name = f"{share:.4g}_{epochs}"
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            settings = Training(epochs=epochs, batch_size=128, learning_rate=0.2)
            run = Run(
                seed=self._seed,
                device=CPU,
                training=settings,
                fine_tuning=settings.model_copy(update={"epochs": 0}),
                report=lambda values: print(name, values, flush=True),
                folder=self._folder / name,
            )
            method = Vanilla(keep_multiplications=share)
            save_network(method.prune(self.dense, self._data, run), path)
        return load_network(path, self.dense)


def planned(epochs: int) -> list[tuple[float, int]]:
    """Shares and epochs of all networks, in the order in which they are trained."""
    looks_twice = [budget / (1 + SECOND_LOOKS) for budget in BUDGETS]
    trained = epochs * (sum(STAGES) + 1)
    longer = [(share, round(trained / share)) for share in LONGER]
    usual = [(share, epochs) for share in (*STAGES, 1.0, *BUDGETS, *looks_twice)]
    first = [*usual[:6], longer[0]]
    return [*first, *(each for each in (*usual, *longer) if each not in first)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/cascade"))
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    data = load_splits(DataOptions(name="cifar10"), options.data, options.seed)
    folder = options.output / f"seed{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    networks = Networks(data, folder, options.seed)
    for share, epochs in planned(options.epochs):
        networks.get(share, epochs)


if __name__ == "__main__":
    main()
