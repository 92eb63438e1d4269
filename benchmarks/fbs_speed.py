"""How much time `fbs` takes for one image, over that of the dense network, on one core.

    python -m benchmarks.fbs_speed [--rounds N] [--json]

M-CifarNet of random weights, whose gates choose at random: at each density with the compiled
operators and with torch's own, beside the dense network in its best form. Beside it stands the
share of the dense multiplications that runs.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines import FBS
from baselines.runtime.fbs import GatedConv2d
from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from testbed import compiled
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.inference_form import inference_form
from testbed.machine import set_threads, tune_malloc

DENSITIES = (0.75, 0.5, 0.25)
IMAGES = 64  # in a piece of work


def gated(dense: nn.Module, density: float) -> nn.Module:
    """With gates that look at the image, as many of them open as the density says."""
    network = FBS(density=density).skeleton(dense).eval()
    for module in network.modules():
        if isinstance(module, GatedConv2d):
            nn.init.uniform_(module.phi, 0.0, 0.5)
    return network


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender runs")
    options = parser.parse_args()
    set_threads(1)
    tune_malloc()
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    dense = build_backbone("m_cifarnet", (3, 32, 32), 10).eval()

    def work(network: nn.Module, built: bool = True) -> Work:
        @torch.inference_mode()
        def run() -> int:
            for image in images.split(1):
                network(image)
            return IMAGES

        def with_torch() -> int:
            with patch.object(compiled, "operators", lambda: None):
                return run()

        return run if built else with_torch

    works, shares = {"dense": work(inference_form(dense, images[:1]))}, {}
    all_multiplications = multiplications(dense, images)
    for density in DENSITIES:
        network = gated(dense, density)
        share = multiplications(network, images) / all_multiplications
        shares[f"density {density:g}"] = f"{share:.1%} of the multiplications"
        works[f"density {density:g}, compiled"] = work(network)
        works[f"density {density:g}, torch's"] = work(network, built=False)
    speeds = measure(works, options.rounds)
    plain = speeds.pop("dense")
    ratios = {f"time over dense, {name}": 1 / speed.over(plain) for name, speed in speeds.items()}
    goals = {f"time over dense, density {d:g}, compiled": Goal(at_most=1.0) for d in DENSITIES[1:]}
    notes = {"compiled operators": "built" if compiled.operators() else "not built"}
    notes |= {"dense images": str(plain), **shares}
    show(Result("fbs_speed", ratios, goals, notes), options.json)


def multiplications(network: nn.Module, images: Tensor) -> float:
    return count_multiplications(network, images).multiplications


if __name__ == "__main__":
    main()
