"""How much faster masks of a layer are judged from kept activations, on one core.

    python -m benchmarks.reward_evaluation [--rounds N] [--images N] [--json]

Ten masks that keep half of a layer's channels, as policy-gradient pruning samples them. Ours keeps
what lies below the next layer and cuts that layer to each mask; its work includes tracing the
network and computing what is kept. The other runs the whole network for each mask, with zeros for
the other channels. Both give the same accuracies. The 96 M network, untrained, float32.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines.channels.channel_groups import channel_groups
from baselines.channels.reward_evaluation import WholeNetwork, evaluation_of_masks
from benchmarks.networks import SHAPE, backbone
from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from testbed.augmentation import Augmentation
from testbed.data import Images, Splits
from testbed.machine import set_threads, tune_malloc

CPU = torch.device("cpu")
MASKS = 10
LAYERS = {"conv2": 1.8, "conv3": 3.0, "conv4": 9.0}  # and the ratio each is held to


def drawn_data(n: int) -> Splits:
    """`n` images of random pixels."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = SHAPE
    shape = (n, height, width, channels)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = Images(pixels.permute(0, 3, 1, 2), torch.arange(n) % 10)
    names = tuple("0123456789")
    return Splits(images, images, names, Augmentation(4, True), (0.5,) * 3, (0.25,) * 3)


def contenders(layer: str, n_images: int) -> dict[str, Work]:
    """Each judges the same masks of a layer, from the network on."""
    network, data = backbone("96 M"), drawn_data(n_images)
    n_channels = len(network.get_parameter(f"{layer}.weight"))
    generator = torch.Generator().manual_seed(1)
    ranks = torch.rand(MASKS, n_channels, generator=generator).argsort(dim=1)
    masks = ranks < n_channels // 2

    groups = channel_groups(network, torch.zeros(2, *SHAPE))

    def ours() -> int:
        evaluation = evaluation_of_masks(
            network, groups, layer, data.validation, data, device=CPU, precision="float32"
        )
        evaluation(masks)
        return MASKS

    whole_network = WholeNetwork(
        network, groups, layer, data.validation, data, device=CPU, precision="float32"
    )

    def whole() -> int:
        whole_network(masks)
        return MASKS

    return {"ours": ours, "whole": whole}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--images", type=int, default=512, help="that judge each mask")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    ratios: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    notes = {"images": f"{options.images}, masks: {MASKS}"}
    for layer, goal in LAYERS.items():
        speeds = measure(contenders(layer, options.images), options.rounds)
        ratios[layer] = speeds["ours"].over(speeds["whole"])
        goals[layer] = Goal(at_least=goal)
        seconds = {name: f"{MASKS / speed.median:.2f} s" for name, speed in speeds.items()}
        notes[layer] = ", ".join(f"{name} {took}" for name, took in seconds.items())
    show(Result("reward_evaluation", ratios, goals, notes), options.json)


if __name__ == "__main__":
    main()
