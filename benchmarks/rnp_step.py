"""A step of Runtime Neural Pruning on a whole batch, against a loop over its images.

    python -m benchmarks.rnp_step [--rounds N] [--json]

A step takes a batch through all layers as Q-learning and fine-tuning do: before each pruned conv
the decision network acts for every image, and each image's channels are masked by its own action.
It is compared with one plain forward pass of the same backbone, and with the same step on one image
after the other. The 96 M network and `lfw3_net` on random 32 x 32 colour images, one thread; in
float32, and in bfloat16 as both train where the processor has it.

The loop also runs the convs on one image at a time. How much slower that alone makes a plain
forward pass is printed as `forward_over_loop`: where it is 2, no way of deciding makes a step many
times as fast as the loop.
"""

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from benchmarks import training_speed
from benchmarks.side_by_side import Goal, Result, Speed, Work, arguments, measure, show
from rnp.runtime_network import RuntimeNetwork
from testbed.backbones import build_backbone
from testbed.machine import Precision, set_threads, tune_malloc
from testbed.prediction import autocast

BATCH_SIZES = (32, 128)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
IMAGES = max(BATCH_SIZES)  # that every contender has in a round
GOALS = {"step_over_loop": Goal(at_least=10), "step_time_over_forward": Goal(at_most=1.1)}


def backbones() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "96M": training_speed.network().eval(),
        "lfw3_net": build_backbone("lfw3_net", (3, 32, 32), 3).eval(),
    }


def in_batches(step: Callable[[Tensor], Tensor], size: int, precision: Precision) -> Work:
    images = torch.randn(IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def work() -> int:
        with autocast(precision, images.device):
            for batch in images.split(size):
                step(batch)
        return IMAGES

    return work


def speeds(backbone: nn.Module, size: int, precision: Precision, rounds: int) -> dict[str, Speed]:
    network = RuntimeNetwork(backbone).eval()
    return measure(
        {
            "forward": in_batches(backbone, size, precision),
            "step": in_batches(network.masked, size, precision),
            "forward in a loop": in_batches(backbone, 1, precision),
            "step in a loop": in_batches(network.masked, 1, precision),
        },
        rounds,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender runs")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    ratios: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    notes: dict[str, str] = {}
    for name, backbone in backbones().items():
        for size, precision in product(BATCH_SIZES, PRECISIONS):
            speed = speeds(backbone, size, precision, options.rounds)
            found = {
                "step_over_loop": speed["step"].over(speed["step in a loop"]),
                "forward_over_loop": speed["forward"].over(speed["forward in a loop"]),
                "step_time_over_forward": speed["forward"].over(speed["step"]),
            }
            case = f"{name}_{size}_{precision}"
            ratios |= {f"{case}_{ratio}": value for ratio, value in found.items()}
            goals |= {f"{case}_{ratio}": goal for ratio, goal in GOALS.items()}
            notes |= {f"{case} {kind}, images": str(each) for kind, each in speed.items()}
    show(Result("rnp_step", ratios, goals, notes), options.json)


if __name__ == "__main__":
    main()
