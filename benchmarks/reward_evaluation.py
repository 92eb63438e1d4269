"""How much faster masks of a layer are judged from kept activations, on one core.

    python -m benchmarks.reward_evaluation [--rounds N] [--images N] [--json]

Ten masks that keep half of a layer's channels, as policy-gradient pruning samples them. Ours keeps
what lies below the next layer, cuts that layer to each mask, and estimates batch norm anew for each
mask; its work includes tracing the network and computing what is kept. The other runs the whole
network for each mask, with zeros for the other channels, and estimates nothing. The 96 M network,
untrained, float32.

And what the estimation adds to a step of ten masks: the time of a step over that of the same
network with its batch norms folded, where there is nothing to estimate. Also VGG-16 at a quarter of
its width.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines.channels.batch_norm_statistics import normalised_batches, statistics_images
from baselines.channels.channel_groups import channel_groups
from baselines.channels.dependency.removal import masked
from baselines.channels.reward_evaluation import MaskEvaluation, evaluation_of_masks
from benchmarks.networks import SHAPE, backbone
from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from testbed.augmentation import Augmentation
from testbed.data import Images, Splits
from testbed.machine import set_threads, tune_malloc

CPU = torch.device("cpu")
MASKS = 10
LAYERS = {"conv2": 1.8, "conv3": 3.0, "conv4": 9.0}  # and the ratio each is held to
ESTIMATING = {"96 M": ("conv2", "conv3"), "vgg16": ("conv3", "conv8")}  # below batch norms
ADDED = 1.2  # most that a step with estimation may take, over one without


def drawn_data(n: int) -> Splits:
    """`n` images of random pixels."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = SHAPE
    shape = (n, height, width, channels)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = Images(pixels.permute(0, 3, 1, 2), torch.arange(n) % 10)
    names = tuple("0123456789")
    return Splits(images, images, names, Augmentation(4, True), (0.5,) * 3, (0.25,) * 3)


def drawn_masks(network: nn.Module, layer: str) -> Tensor:
    n_channels = len(network.get_parameter(f"{layer}.weight"))
    ranks = torch.rand(MASKS, n_channels, generator=torch.Generator().manual_seed(1))
    return ranks.argsort(dim=1) < n_channels // 2


def evaluation_of(network: nn.Module, layer: str, data: Splits) -> MaskEvaluation:
    groups = channel_groups(network, torch.zeros(2, *SHAPE))
    images = data.validation
    statistics = statistics_images(data, len(images), seed=0)
    return evaluation_of_masks(
        network, groups, layer, images, statistics, data, device=CPU, precision="float32"
    )


def ways(layer: str, data: Splits) -> dict[str, Work]:
    """Each judges the same masks of a layer, from the network on."""
    network = backbone("96 M")
    masks = drawn_masks(network, layer)
    groups = channel_groups(network, torch.zeros(2, *SHAPE))
    batches = normalised_batches(network, data.validation, data, CPU)

    def ours() -> int:
        evaluation_of(network, layer, data)(masks)
        return MASKS

    def whole() -> int:
        for mask in masks:
            lost = groups.lost({layer: (~mask).nonzero().flatten().tolist()})
            for batch in batches:
                masked(network, groups.trace, lost, batch).argmax(dim=1)
        return MASKS

    return {"ours": ours, "whole": whole}


def steps(name: str, layer: str, data: Splits) -> dict[str, Work]:
    """A step of ten masks, with estimation and without."""
    network = backbone(name, 1.0 if name == "96 M" else 0.25)
    masks = drawn_masks(network, layer)

    def step(network: nn.Module) -> Work:
        evaluation = evaluation_of(network, layer, data)

        def work() -> int:
            evaluation(masks)
            return MASKS

        return work

    return {"with": step(network), "without": step(fuse(network))}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--images", type=int, default=1024, help="that judge each mask")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    ratios: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    notes = {"images": f"{options.images}, masks: {MASKS}"}
    data = drawn_data(options.images)
    for layer, goal in LAYERS.items():
        speeds = measure(ways(layer, data), options.rounds)
        ratios[layer] = speeds["ours"].over(speeds["whole"])
        goals[layer] = Goal(at_least=goal)
        seconds = {name: f"{MASKS / speed.median:.2f} s" for name, speed in speeds.items()}
        notes[layer] = ", ".join(f"{name} {took}" for name, took in seconds.items())
    for network, layers in ESTIMATING.items():
        for layer in layers:
            speeds = measure(steps(network, layer, data), options.rounds)
            ratio = f"{network}_{layer}_with_estimation"
            ratios[ratio] = speeds["without"].over(speeds["with"])
            goals[ratio] = Goal(at_most=ADDED)
    show(Result("reward_evaluation", ratios, goals, notes), options.json)


if __name__ == "__main__":
    main()
