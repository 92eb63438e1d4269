"""How much of the time that a cascade's decisions should save is saved on a clock, on one core.

    python -m benchmarks.cascade_speed [--rounds N] [--json]

Share of the ideal speed-up over running every stage for every image: the ideal time is that of each
stage alone, weighted by the share of images that reach it. Stages are 12, 41 and 100 % of the 11.2
M network of `sweeps/cifar_frontier.yaml`, of random weights, in the form in which they run best;
half of the images reach the second and a fifth the third. Deciding: what a first look takes longer
as a part of the cascade, as a share of the ideal time.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import Vanilla
from baselines.runtime.cascade_network import CascadeNetwork
from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from testbed.augmentation import Augmentation
from testbed.backbones import build_backbone
from testbed.data import Images, Splits
from testbed.inference_form import inference_form
from testbed.looks import confidence_of
from testbed.machine import set_threads, tune_malloc

STAGES = (0.12, 0.41)
REACHED = (1.0, 0.5, 0.2)
BATCHES = {1: 64, 128: 512}  # size -> images in a piece of work
ALL, CASCADE, FIRST_LOOK = "every stage", "cascade", "first look"


def images(n: int) -> Tensor:
    drawn = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


def stages() -> list[nn.Module]:
    """The networks, in the form in which they run best."""
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    few = Images(pixels, torch.arange(2))
    names = tuple("0123456789")
    data = Splits(few, few, names, Augmentation(0, False), (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    dense = build_backbone(
        "conv", data.input_shape, 10, channels=[32, 64, 96, 128], pool_after=[1, 2, 3, 4]
    )
    thin = [Vanilla(keep_multiplications=share).foreseen(dense, data) for share in STAGES]
    return [inference_form(network.eval(), images(2)) for network in (*thin, dense)]


@torch.inference_mode()
def cascade(networks: list[nn.Module], pool: Tensor, reached: tuple[float, ...]) -> CascadeNetwork:
    """A cascade of them that so many of these images go through."""
    network = CascadeNetwork(networks).eval()
    answers, waiting = network.look(0, pool).log_softmax(dim=1), pool
    for number in range(1, len(networks)):
        confidences = confidence_of(answers, "margin")
        ordered = confidences.sort().values
        place = round(len(pool) * reached[number])
        threshold = (ordered[place - 1] + ordered[place]) / 2 if place else -torch.inf
        network.thresholds[number - 1] = threshold
        unsure = confidences < network.thresholds[number - 1]
        waiting, answers = waiting[unsure], answers[unsure]
        answers = network.averaged(number, answers, network.look(number, waiting))
    return network


def work(networks: list[nn.Module], batches: list[Tensor]) -> Work:
    @torch.inference_mode()
    def run() -> int:
        for batch in batches:
            for network in networks:
                network(batch)
        return sum(map(len, batches))

    return run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    networks = stages()
    ratios: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    notes: dict[str, str] = {}
    for size, n in BATCHES.items():
        pool = images(n)
        batches = [*pool.split(size)]
        contenders = {f"stage {i}": work([each], batches) for i, each in enumerate(networks, 1)}
        contenders |= {
            ALL: work(networks, batches),
            CASCADE: work([cascade(networks, pool, REACHED)], batches),
            FIRST_LOOK: work([cascade(networks, pool, (1.0, 0.0, 0.0))], batches),
        }
        speeds = measure(contenders, options.rounds)
        ms = {name: [1000 / each for each in speed.rounds] for name, speed in speeds.items()}
        alone = zip(*(ms[f"stage {i}"] for i in range(1, len(networks) + 1)), strict=True)
        ideal = [
            sum(share * stage for share, stage in zip(REACHED, each, strict=True)) for each in alone
        ]
        name = f"batch {size}"
        # (every / ours) / (every / ideal)
        ratios[f"{name}, of the ideal speed-up"] = median_ratio(ideal, ms[CASCADE])
        goals[f"{name}, of the ideal speed-up"] = Goal(at_least=0.95)
        ratios[f"{name}, speed-up over every stage"] = median_ratio(ms[ALL], ms[CASCADE])
        more = [a - b for a, b in zip(ms[FIRST_LOOK], ms["stage 1"], strict=True)]
        ratios[f"{name}, deciding"] = median_ratio(more, ideal)
        goals[f"{name}, deciding"] = Goal(at_most=0.02)
        notes |= {f"{name}, {who}": f"{min(each):.3f} ms an image" for who, each in ms.items()}
    show(Result("cascade_speed", ratios, goals, notes), options.json)


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds of the ratio within the round."""
    pairs = zip(above, below, strict=True)
    return torch.tensor([a / b for a, b in pairs]).median().item()


if __name__ == "__main__":
    main()
