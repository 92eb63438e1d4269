"""Our training loop against a plain one: images per second on one core.

    python -m benchmarks.training_speed [--rounds N] [--json]

Both train the 96 M network (3x3 convs of 64, 64, 128 and 128 channels) on random 32 x 32 colour
pixels in batches of 256, shifted by up to 4 pixels, half of them mirrored, normalised. The plain
loop is eager float32 with torchvision's transforms in a DataLoader (num_workers=0). Each runs in a
process of its own, as how one tunes malloc must not help the other. Beside them runs a large
matrix product in the precision that ours uses: what the core can do at best.
"""

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from benchmarks.data_speed import MEAN, STD, PictureDataset, random_images
from benchmarks.side_by_side import Goal, Result, Speed, Work, arguments, measure, show
from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import Splits
from testbed.machine import best_precision, set_threads, tune_malloc
from testbed.training import Training, train

CPU = torch.device("cpu")
SETTINGS = Training(epochs=1, batch_size=256)
OUR_IMAGES = 6 * 256
PLAIN_IMAGES = 2 * 256  # both then take some seconds
MATRIX_SIZE = 1024  # of 512 to 3072 the fastest, or within 2 % of it
GOAL = Goal(at_least=2.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("conv", (3, 32, 32), 10, channels=[64, 64, 128, 128], pool_after=[2, 4])


def our_epoch() -> Work:
    tune_malloc()
    generator = torch.Generator().manual_seed(0)
    images = random_images(OUR_IMAGES, generator)
    validation = random_images(16, generator)
    names = tuple("abcdefghij")
    data = Splits(images, validation, names, Augmentation(crop=4, flip=True), MEAN, STD)
    model = network()

    def epoch() -> int:
        train(model, data, SETTINGS, seed=0, device=CPU)
        return OUR_IMAGES

    return epoch


def plain_epoch() -> Work:
    images = random_images(PLAIN_IMAGES, torch.Generator().manual_seed(0))
    loader = DataLoader(PictureDataset(images), SETTINGS.batch_size, shuffle=True, num_workers=0)
    model = network().train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=SETTINGS.learning_rate,
        momentum=SETTINGS.momentum,
        weight_decay=SETTINGS.weight_decay,
        nesterov=True,
    )

    def epoch() -> int:
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
        return PLAIN_IMAGES

    return epoch


def matrix_products() -> Work:
    """Counts multiplications."""
    tune_malloc()
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE).to(best_precision(CPU))

    def products() -> int:
        for _ in range(100):
            a @ b
        return 100 * MATRIX_SIZE**3

    return products


class InAProcess:
    """Work that is made and done in a process of its own, on one thread."""

    def __init__(self, make: Callable[[], Work]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, its_end = context.Pipe()
        context.Process(target=_work_when_asked, args=(its_end, make), daemon=True).start()
        its_end.close()  # so that the end of the process is noticed here

    def __call__(self) -> int:
        self._connection.send("work")
        units: int = self._connection.recv()
        return units


def _work_when_asked(connection: Connection, make: Callable[[], Work]) -> None:
    set_threads(1)
    work = make()
    with suppress(EOFError):  # the asking process has ended
        while connection.recv():
            connection.send(work())


def multiplications_per_image() -> int:
    """Of a training step: forward, then backward to the weights and to the inputs.

    Backward to the inputs is not needed in the first conv.
    """
    cost = count_multiplications(network().eval(), torch.zeros(1, 3, 32, 32))
    first_conv = int(next(iter(cost.per_layer.values())))
    return int(3 * cost.multiplications - first_conv)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    options = parser.parse_args()
    set_threads(1)
    speeds = measure(
        {
            "ours": InAProcess(our_epoch),
            "plain": InAProcess(plain_epoch),
            "matmul": InAProcess(matrix_products),
        },
        options.rounds,
    )
    ours, plain, matmul = speeds["ours"], speeds["plain"], speeds["matmul"]
    computing = Speed(tuple(speed * multiplications_per_image() for speed in ours.rounds))
    ratios = {"ours_over_plain": ours.over(plain), "ours_over_matmul_peak": computing.over(matmul)}
    peak = f"{matmul.median / 1e9:,.0f} thousand million multiplications/s"
    notes = {
        "ours, images": str(ours),
        "plain, images": str(plain),
        f"peak in {str(best_precision(CPU)).removeprefix('torch.')}": peak,
    }
    show(Result("training_speed", ratios, {"ours_over_plain": GOAL}, notes), options.json)


if __name__ == "__main__":
    main()
